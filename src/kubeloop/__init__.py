"""kubeloop: the closed machine-learning loop on Kubernetes."""

__all__ = ["__version__"]

__version__ = "0.1.0"
