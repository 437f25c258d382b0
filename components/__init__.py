"""The steps of kubeloop's pipelines: one KFP component a file, ten lines over the library."""
