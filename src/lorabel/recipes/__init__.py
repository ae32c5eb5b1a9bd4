"""Shipped settings, as YAML files."""
