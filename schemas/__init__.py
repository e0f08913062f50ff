"""Contracts: what the services say to each other, as bytes and as facts."""
