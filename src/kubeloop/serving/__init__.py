"""The serving data plane: the model server and the feature transformer, over the Open Inference Protocol."""

MOST_DRAINS = 3
"""A server that is told to stop but still gets requests runs for at most this many times `drain_s`, as pods may."""
