"""The packed encoder, the heads, and the bank that joins them with K adapters."""
