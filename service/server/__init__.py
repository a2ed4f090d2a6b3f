"""gunicorn's configuration and worker, the fast path for steps, and the start of the service."""
