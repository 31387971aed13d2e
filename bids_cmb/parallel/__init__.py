"""Parallel processing: processes of this machine, or workers of a Dask cluster."""
