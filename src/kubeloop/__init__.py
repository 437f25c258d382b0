"""kubeloop: the closed machine-learning loop on Kubernetes."""

__version__ = "0.1.0"
