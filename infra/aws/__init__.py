"""AWS: the templates of what evergreen needs there, and what acts on them."""
