"""The lifecycle of sessions: creation, expiry, forks, rewind, migration and transfer."""
