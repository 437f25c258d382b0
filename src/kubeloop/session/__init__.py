"""One `kubeloop run` on one machine, and its clients."""
