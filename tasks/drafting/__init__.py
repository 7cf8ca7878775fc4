"""A look at a person's table → params.yaml and features.sql that run."""
