"""Kubeflow Pipelines: its API, what is submitted to it, and what it says of a run."""
