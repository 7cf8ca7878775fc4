"""Predictions, by batch, API or stream, and the journal of them. README.md lists the files in order."""
