"""A run folder: what it holds, read and written here and nowhere else."""
