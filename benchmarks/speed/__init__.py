"""Seconds and memory of the app."""
