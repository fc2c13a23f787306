"""Declarations only: grids and the papers' printed numbers, read through importlib.resources."""
