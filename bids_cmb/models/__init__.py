"""Networks: one file, one builder each."""
