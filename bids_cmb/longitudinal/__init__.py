"""Lesions over time: scans of one person laid over each other, and their lesions followed."""
