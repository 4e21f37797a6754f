"""Predictors of structure search: what a source teaches (forest), and what target queries say about it (experts)."""
