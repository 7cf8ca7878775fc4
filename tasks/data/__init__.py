"""Sources → contract → clean tables → feature rows; README.md says more."""
