"""Labels of other groups, converted to BIDS."""
