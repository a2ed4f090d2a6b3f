"""Where a service is and who asks it, as they may be written. Knows no transport."""

from urllib.parse import urlsplit


def service(url: str) -> str:
    """The URL, its scheme in small letters and without a slash at its end. Raises ValueError."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a service: expected one such as http://127.0.0.1:8000")
    _ = parts.port  # raises ValueError where it is none
    return parts.geturl().rstrip("/")


def key(text: str | None) -> str | None:
    """The API key as it is sent, without white space around it; None where there is none.

    Raises ValueError, which does not tell it.
    """
    text = (text or "").strip()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("the API key has a character that cannot be sent in a header")
    return text or None
