"""Candidate against champion → verdict → alias and ledger; README.md says more."""
