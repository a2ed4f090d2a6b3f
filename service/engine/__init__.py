"""The use-cases, what runs next, and running it. Knows nothing of HTTP."""
