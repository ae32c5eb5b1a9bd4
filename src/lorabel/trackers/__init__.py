"""Experiment trackers, one file each; every one is an extra, and none is needed."""
