"""Where members run."""
