"""The serving data plane: the model server and the feature transformer, over the Open Inference Protocol."""
