"""Records in, tables and figures out; reads no models."""
