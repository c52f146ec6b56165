"""The engine: requests in, events out, in one thread."""
