"""Storage: files, a bucket, a database."""
