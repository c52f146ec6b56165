"""Chat templates: rendering them within limits."""
