"""The steps of the pipelines as functions over files, which the components call; no kfp here."""
