"""Kinds of models: what each predicts, how it is trained, measured and watched."""
