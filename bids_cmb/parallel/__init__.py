"""Many scans at once: processes of this machine, or workers of a Dask cluster."""
