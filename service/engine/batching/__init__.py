"""Batches: requests of many sessions run together in one call of the model."""
