"""Convert the labels of other groups to BIDS."""
