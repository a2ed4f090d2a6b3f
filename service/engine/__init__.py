"""The use-cases of the service, and the batches that run them. Knows nothing of HTTP."""
