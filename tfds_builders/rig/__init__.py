"""A user's own rig: surround images, calibration and, where there is one, LiDAR."""
