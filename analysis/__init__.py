"""Numbers from run folders and checkpoints: DataFrames in, DataFrames out."""
