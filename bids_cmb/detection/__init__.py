"""Detectors: from a scan to the probability of microbleed in each voxel."""
