"""Onward from Python: a sync and an async client of the service, and the same sessions in this process.

Import them from `onward`: `Client`, `AsyncClient`, `load`. Requests, retries and the meaning of responses are decided
without I/O in `command_flow`, `operations`, `session_operations`, `step_stream` and `generation`. The modules of
`transport` carry the decisions out.
"""
