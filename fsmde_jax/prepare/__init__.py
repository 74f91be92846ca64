"""From a raw recording to the prepared dataset; the check of a rig's calibration."""
