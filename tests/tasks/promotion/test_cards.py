"""The cards say what the stages know, and add up."""
