"""Decoding: from the members' logits to committed tokens."""
