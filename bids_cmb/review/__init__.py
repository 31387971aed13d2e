"""Reviews by readers: read, merged, made a reference."""
