"""Load on a service whose every answer is checked."""
