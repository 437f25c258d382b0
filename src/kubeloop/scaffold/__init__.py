"""`kubeloop init`: from any table with a label, a timestamp and keys to a use case that runs."""
