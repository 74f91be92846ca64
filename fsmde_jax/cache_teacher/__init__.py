"""Stores the outputs of a frozen teacher."""
