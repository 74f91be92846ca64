"""From raw recordings to batches: readers, LiDAR projection, the prepared dataset, Grain."""
