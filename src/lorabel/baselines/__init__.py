"""Classifiers that are no adapters and that a comparison sets beside them: one file each."""
