"""Metric, prediction, the evaluation loop and speed."""
