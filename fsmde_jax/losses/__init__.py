"""Losses, and the objective that weighs them."""
