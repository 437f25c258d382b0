"""Raw tables: read them, validate them, and show what was known at a moment."""
