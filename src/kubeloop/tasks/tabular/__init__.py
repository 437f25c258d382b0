"""Models of tables, which give one answer per row."""
