"""Numbers, tables, figures and reports from run folders and checkpoints."""

from analysis.load import load_runs

__all__ = ["load_runs"]
