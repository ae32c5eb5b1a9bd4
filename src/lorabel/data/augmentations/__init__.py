"""One file per augmentation of training texts."""
