"""One model: loading it, running it, and its KV cache."""
