"""Scoring of predictions against the inputs that follow them: running statistics, anomalies and intervals.

A session's statistics are bytes, in a service's record as in a process that runs a bundle locally.
"""
