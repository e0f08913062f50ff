"""The HTTP API, for applications and small senders.

Consumes HTTP requests and `billing.results`; produces `billing.commands` and `usage.events`; owns app.customer_profile
and reads the projections as the role that sees one tenant at a time. Repeats safely because every command carries its
client's idempotency key and every usage event its id.
"""

from __future__ import annotations

from infra.settings import Settings


def main(settings: Settings) -> int:
    """Serve until SIGTERM; 0 when every request under way was answered."""
    from services.api.server import serve

    return serve(settings)
