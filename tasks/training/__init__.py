"""Features → tuned, calibrated model and its profile; README.md says more."""
