"""The URL of a service and the API key, as a user may write them. Knows no transport."""

from urllib.parse import urlsplit


def service(url: str) -> str:
    """Returns the URL with its scheme in lower case and without a slash at its end. Raises ValueError."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not the address of a service; expected one such as http://127.0.0.1:8000")
    _ = parts.port  # raises ValueError if it is not a number
    return parts.geturl().rstrip("/")


def key(text: str | None) -> str | None:
    """Returns the API key as it is sent, without white space around it; None if there is none.

    Raises ValueError, whose message does not contain the key.
    """
    text = (text or "").strip()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("the API key has a character that cannot be sent in a header")
    return text or None
