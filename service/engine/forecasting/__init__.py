"""Predictions are rolled forward from a session's state; the session itself does not change."""
