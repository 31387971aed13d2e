"""BIDS datasets: which scans there are, their metadata and companions, and our derivatives."""
