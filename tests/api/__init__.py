"""The HTTP API on real Postgres, with the real rules behind it."""
