"""BIDS datasets: scans, their metadata and companion files, and the derivatives of the app."""
