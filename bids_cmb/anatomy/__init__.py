"""Anatomy of the head: brain, structures, regions, atlases."""
