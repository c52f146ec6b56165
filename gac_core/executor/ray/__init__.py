"""Members in actors of Ray, on one machine or on many."""
