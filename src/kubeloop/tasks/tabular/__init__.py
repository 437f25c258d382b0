"""Models of tables: one row in, one answer out."""
