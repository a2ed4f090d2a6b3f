"""Requests of many sessions are run together: the scheduler, the batcher and the call of the model."""
