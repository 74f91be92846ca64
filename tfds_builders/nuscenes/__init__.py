"""nuScenes: surround images, calibration and LiDAR."""
