"""Lesions: from a probability map to measured lesions, their labels and their tables."""
