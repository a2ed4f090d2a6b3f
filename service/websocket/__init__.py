"""Steps over a WebSocket: framing, connections and the endpoint."""
