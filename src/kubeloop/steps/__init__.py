"""The steps of the pipelines, as functions over files: what a component calls, nothing of kfp."""
