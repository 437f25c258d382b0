"""Where things are kept: files, a bucket, a database."""
