"""Onward from Python: a client of the service, its asynchronous twin, and the same sessions in process.

Import these from `onward`: `Client`, `AsyncClient`, `load`. What is sent, what an answer means and when something is
sent again is decided without I/O (`flow`, `calls`, `sessions`, `streams`, `generating`); `sync` and `aio` carry it out.
"""
