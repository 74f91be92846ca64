"""Speed of a config: inference, training step, input, published teachers."""
