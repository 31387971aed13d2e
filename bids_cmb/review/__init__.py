"""Reviews by readers: loaded, merged, and turned into a reference."""
