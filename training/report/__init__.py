"""Metrics for people: the HTML report with its charts, and the table in the terminal."""
