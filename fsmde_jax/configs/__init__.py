"""The configs of the package, each with `get_config`: `--config=demo`, or as files in `configs/`.

They share code by import, and a config of your own can do the same wherever it lies.
"""
