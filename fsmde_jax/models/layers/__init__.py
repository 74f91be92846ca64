"""Parts that networks are made of, and what XLA is told about them."""
