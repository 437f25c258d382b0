"""The pipelines: factories that wire components for one use case. `python -m pipelines --help`."""
