"""Models of tables: one row in, one probability out."""
