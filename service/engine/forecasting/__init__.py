"""Forecasts: predictions rolled forward from a session's state. The session itself does not change."""
