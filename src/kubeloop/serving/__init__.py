"""The serving data plane: the model server and the feature transformer, over the Open Inference Protocol."""

MOST_DRAINS = 3
"""A server that is told to stop, and still asked, goes on for at most so many times `drain_s`; pods get that time."""
