"""The command line."""

from kubeloop.cli.main import main

__all__ = ["main"]
