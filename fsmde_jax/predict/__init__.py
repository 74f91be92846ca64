"""A trained student at work on a dataset, a recording, photos or a video."""
