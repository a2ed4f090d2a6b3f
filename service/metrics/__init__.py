"""Metrics for Prometheus, summed over all worker processes."""
