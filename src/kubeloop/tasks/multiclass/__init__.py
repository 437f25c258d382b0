"""Predict the class of a row: one probability per class."""
