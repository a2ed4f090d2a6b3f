"""The format of times in responses."""

from datetime import UTC, datetime


def iso(seconds: float) -> str:
    """Formats seconds since 1970 UTC as RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
