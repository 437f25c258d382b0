"""Kubeflow Pipelines: its API, submitting pipelines to it, and reading runs from it."""
