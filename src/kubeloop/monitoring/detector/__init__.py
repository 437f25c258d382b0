"""Drift tests behind one port: Alibi Detect in a process of its own, or the built-in engine."""
