"""A driver series checked patch by patch."""
