"""Chat templates: rendering within limits, and a plain template for base models."""
