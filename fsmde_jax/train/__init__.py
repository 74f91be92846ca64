"""Training: the loop, what has to exist before it, the dry run."""
