"""How a stage's program runs: workspace, DVC, locks, files; README.md says more."""
