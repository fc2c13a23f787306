"""relora_lab: train by sequences of low-rank updates, and keep everything needed to look at their rank."""

__version__ = "0.1.0"
