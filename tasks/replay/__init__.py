"""The user's own history, walked once for each retrain policy; README.md says more."""
