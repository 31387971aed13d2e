"""Images: volumes in world space, grids of networks, registration, phase."""
