"""Command lines: the BIDS App and the other commands."""
