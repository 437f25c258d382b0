"""One machine in the place of a cluster: it serves a manifest with processes of its own, and routes to them."""
