"""Weights in files: names of foreign checkpoints, files and their checks, loading, saving."""
