"""Bundles are measured on held-out data, beside naive baselines."""
