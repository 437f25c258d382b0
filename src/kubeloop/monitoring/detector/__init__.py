"""Drift tests behind one port: Alibi Detect in a separate process, or the built-in engine."""
