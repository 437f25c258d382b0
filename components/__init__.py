"""The steps of kubeloop's pipelines: one KFP component per file, a few lines over the library."""
