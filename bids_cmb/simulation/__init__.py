"""Simulation of scans with known microbleeds and mimics."""
