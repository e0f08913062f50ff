"""The peers' own figures, computed by the public functions of `billing/`."""
