"""What the system stands on: one third-party client per module."""
