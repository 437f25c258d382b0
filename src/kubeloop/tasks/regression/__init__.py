"""Predict a number with a prediction interval."""
