"""Reading, checking, splitting and packing labelled texts."""
