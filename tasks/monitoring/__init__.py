"""A window of predictions → signals → retrain or wait; README.md says more."""
