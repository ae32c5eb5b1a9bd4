"""One file per trainable method; the registry imports this folder by name."""
