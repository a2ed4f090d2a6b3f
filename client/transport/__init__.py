"""How requests reach a service: HTTP by httpx, WebSockets, and addresses."""
