"""One file per source of labelled texts; each yields rows with their line numbers."""
