"""Training of a baseline."""
