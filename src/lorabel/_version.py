"""The version, and nothing else: the one place in the package that knows it."""

__version__ = "0.1.0"
