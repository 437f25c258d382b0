"""Raw tables: taken in, validated, and shown as they were known at a moment."""
