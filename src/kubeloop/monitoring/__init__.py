"""Watching a model in service: payload log, windows, performance, drift and episodes."""
