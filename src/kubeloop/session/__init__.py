"""One `kubeloop run` on one machine, and those who talk to it."""
