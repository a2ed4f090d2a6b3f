"""The transports: HTTP by httpx, WebSockets, and addresses."""
