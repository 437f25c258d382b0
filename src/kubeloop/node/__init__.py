"""The local node: one machine instead of a cluster, which serves manifests with child processes."""
