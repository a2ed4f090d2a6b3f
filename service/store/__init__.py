"""The stores of sessions and the record that they store. Knows nothing of models or of HTTP."""
