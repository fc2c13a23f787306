"""Optimizer resets, saved optimizer state, and optimizers of the papers that torch does not have."""
