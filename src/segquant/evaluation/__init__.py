"""Metrics, prediction, the evaluation loop and speed measurements."""
