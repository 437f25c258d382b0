"""Whether something happens: one probability a row."""
