"""Predict whether something happens: one probability per row."""
