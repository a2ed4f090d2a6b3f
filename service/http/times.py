"""Times as clients read them."""

from datetime import UTC, datetime


def iso(seconds: float) -> str:
    """Seconds since 1970 UTC as RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
