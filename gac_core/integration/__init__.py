"""What the wrappers for frameworks share: fields, call arguments, loading, metadata and structured output.

Without pydantic and without any framework; wrappers import it from `gac_core`.
"""
