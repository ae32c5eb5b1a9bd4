"""Everything that is written to disk: layout, atomic store, records, adapter folders, cards."""
