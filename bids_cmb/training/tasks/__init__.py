"""Tasks that networks are trained for, one module each."""
