"""Full-surround metric depth: distil a depth foundation model into a light JAX student."""

__version__ = "0.1.0"
