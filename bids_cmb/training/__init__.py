"""Training of networks, from recipe to released detector."""
