"""Dataset builders, one folder a dataset, after TFDS's conventions."""
