"""What a run is, in memory and on disk: state, checkpoints, devices, example, forks."""
