"""The verbs: one file each, frozen settings in, frozen results out; they never print."""
