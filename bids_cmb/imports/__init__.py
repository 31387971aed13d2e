"""Readers of other groups' labels, one module each: a folder of theirs → `labelled.Source`."""
