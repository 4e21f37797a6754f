"""Metrics, statistics, calibration, and the rows that every result is made of."""
