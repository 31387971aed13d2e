"""Benchmarks of bids_cmb: run each as a module, from the root of the repository."""
