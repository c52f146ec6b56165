"""Placement: which member runs on which device, from sizes alone."""
