"""Calibration of an ensemble on questions with known answers: temperatures, weights, thresholds, reliability."""
