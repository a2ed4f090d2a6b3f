"""Where sessions live: the record and the stores. Knows nothing of models or of HTTP."""
