"""Which of several classes a row is of: one probability a class."""
