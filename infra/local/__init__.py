"""The embedded stack: Kafka, Postgres and Valkey without Docker."""
