"""What is known of a customer as a person: name and address, beside the log and erasable (promise 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from infra.postgres import Cursor


@dataclass(frozen=True, slots=True)
class Profile:
    """Name and address of a customer; empty where not given."""

    name: str = ""
    email: str = ""
    locale: str = ""
    """How amounts are written on its invoices, such as de-DE; empty for plain figures."""


def write(tx: Cursor, tenant: str, customer: str, profile: Profile) -> bool:
    """Store `profile` as the customer's; False if it says the same already."""
    done = tx.execute(
        """
        INSERT INTO app.customer_profile (tenant_id, customer_id, name, email, locale)
        VALUES (%(tenant)s, %(customer)s, %(name)s, %(email)s, %(locale)s)
            ON CONFLICT (tenant_id, customer_id) DO UPDATE
           SET name = EXCLUDED.name, email = EXCLUDED.email, locale = EXCLUDED.locale, written_at = now()
         WHERE (customer_profile.name, customer_profile.email, customer_profile.locale)
               IS DISTINCT FROM (EXCLUDED.name, EXCLUDED.email, EXCLUDED.locale)
        """,
        {"tenant": tenant, "customer": customer, **asdict(profile)},
    )
    return done.rowcount == 1


def write_first(tx: Cursor, tenant: str, customer: str, profile: Profile) -> Profile:
    """Store `profile` unless the customer has one; returns the one that is stored now."""
    tx.execute(
        """
        INSERT INTO app.customer_profile (tenant_id, customer_id, name, email, locale)
        VALUES (%(tenant)s, %(customer)s, %(name)s, %(email)s, %(locale)s)
            ON CONFLICT (tenant_id, customer_id) DO NOTHING
        """,
        {"tenant": tenant, "customer": customer, **asdict(profile)},
    )
    return read(tx, tenant, [customer])[customer]


def read(tx: Cursor, tenant: str, customers: Sequence[str]) -> dict[str, Profile]:
    """The profiles of `customers`; one who has none is missing."""
    rows = tx.execute(
        """
        SELECT customer_id, name, email, locale
          FROM app.customer_profile
         WHERE tenant_id = %s AND customer_id = ANY(%s)
        """,
        (tenant, list(customers)),
    ).fetchall()
    return {customer: Profile(*profile) for customer, *profile in rows}
