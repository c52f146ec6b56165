"""Evaluation of members, ensembles and settings on questions with known answers."""
