"""DDAD: surround images, calibration and LiDAR."""
