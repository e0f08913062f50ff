"""What applications and people read: rows of the projections as values, the same for HTTP and the command line.

Every function runs inside a transaction that has entered the set `billing` (`entered`), names its tenant (row-level
security would hide others anyway) and pages by key, so that a page never skips or repeats a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from billing.catalog import PriceBookPublished
from infra.errors import Transient
from infra.postgres import Cursor
from projections import generation, invoices, ledger, price_books
from services import customer_profile
from services.customer_profile import Profile
from services.read_rows import (
    Amount,
    AttemptRow,
    BalanceRow,
    CouponRow,
    CustomerRow,
    GrantRow,
    InvoiceRow,
    IssuedInvoice,
    PaymentRow,
    PriceBookRow,
    Subscribers,
    SubscriptionRow,
    TenantRow,
    WaitingChange,
)


def entered(tx: Cursor) -> Cursor:
    """`tx`, reading the current generation.

    Raises:
        Transient: nothing was ever projected; the system is not prepared yet.
    """
    try:
        generation.enter(tx, "billing")
    except generation.NoGeneration as e:
        raise Transient(str(e)) from e
    return tx


def tenants(tx: Cursor) -> list[TenantRow]:
    """All tenants (as far as the role may see them)."""
    return [TenantRow(*row) for row in tx.execute(_TENANTS + " ORDER BY tenant_id").fetchall()]


def tenant(tx: Cursor, tenant_id: str) -> TenantRow | None:
    """One tenant; None if nothing of it is projected."""
    row = tx.execute(_TENANTS + " WHERE tenant_id = %s", (tenant_id,)).fetchone()
    return None if row is None else TenantRow(*row)


_TENANTS = "SELECT tenant_id, name, currency, zone, test_clock, last_sequence FROM tenants"


def customers(tx: Cursor, tenant_id: str, *, after: str = "", limit: int) -> list[CustomerRow]:
    """Customers by id."""
    rows = tx.execute(
        _CUSTOMERS + " WHERE tenant_id = %s AND customer_id > %s ORDER BY customer_id LIMIT %s",
        (tenant_id, after, limit),
    ).fetchall()
    return _customers(tx, tenant_id, rows)


def customer(tx: Cursor, tenant_id: str, customer_id: str) -> CustomerRow | None:
    """One customer; None if there is none."""
    rows = tx.execute(_CUSTOMERS + " WHERE tenant_id = %s AND customer_id = %s", (tenant_id, customer_id)).fetchall()
    return next(iter(_customers(tx, tenant_id, rows)), None)


_CUSTOMERS = "SELECT customer_id, provider, payment_token, jurisdiction, created_at FROM customers"


def _customers(tx: Cursor, tenant_id: str, rows: Sequence[Sequence[Any]]) -> list[CustomerRow]:
    ids = [row[0] for row in rows]
    profiles = customer_profile.read(tx, tenant_id, ids)
    coupons: dict[str, list[CouponRow]] = {}
    for customer_id, *coupon in tx.execute(
        """
        SELECT customer_id, coupon, redeemed_at, invoices
          FROM customer_coupons
         WHERE tenant_id = %s AND customer_id = ANY(%s)
         ORDER BY redeemed_at, coupon
        """,
        (tenant_id, ids),
    ).fetchall():
        coupons.setdefault(customer_id, []).append(CouponRow(*coupon))
    credit: dict[str, list[Amount]] = {}
    for customer_id, minor, currency in tx.execute(
        """
        SELECT customer_id, minor, currency
          FROM customer_credits
         WHERE tenant_id = %s AND customer_id = ANY(%s) AND minor > 0
         ORDER BY currency
        """,
        (tenant_id, ids),
    ).fetchall():
        credit.setdefault(customer_id, []).append(Amount.of(minor, currency))
    grants = _grants(tx, tenant_id, ids)
    made = []
    for customer_id, provider, token, jurisdiction, created_at in rows:
        profile = profiles.get(customer_id, Profile())
        made.append(
            CustomerRow(
                id=customer_id,
                name=profile.name,
                email=profile.email,
                locale=profile.locale,
                provider=provider,
                payment_token=token,
                jurisdiction=jurisdiction,
                coupons=coupons.get(customer_id, []),
                credit=credit.get(customer_id, []),
                grants=grants.get(customer_id, []),
                created_at=created_at,
            )
        )
    return made


def _grants(tx: Cursor, tenant_id: str, customers: Sequence[str]) -> dict[str, list[GrantRow]]:
    made: dict[str, list[GrantRow]] = {}
    for customer_id, id, currency, amount, left, *terms in tx.execute(
        """
        SELECT customer_id, grant_id, currency, amount_minor, left_minor, priority, kind, expires_at, reason, granted_at
          FROM customer_grants
         WHERE tenant_id = %s AND customer_id = ANY(%s)
         ORDER BY granted_at, grant_id
        """,
        (tenant_id, customers),
    ).fetchall():
        row = GrantRow(id, Amount.of(amount, currency), Amount.of(left, currency), *terms)
        made.setdefault(customer_id, []).append(row)
    return made


def subscriptions(
    tx: Cursor, tenant_id: str, *, customer_id: str | None = None, after: str = "", limit: int
) -> list[SubscriptionRow]:
    """Subscriptions by id."""
    rows = tx.execute(
        _SUBSCRIPTIONS
        + """
         WHERE tenant_id = %(tenant)s
           AND (%(customer)s::text IS NULL OR customer_id = %(customer)s)
           AND subscription_id > %(after)s
         ORDER BY subscription_id
         LIMIT %(limit)s
        """,
        {"tenant": tenant_id, "customer": customer_id, "after": after, "limit": limit},
    ).fetchall()
    return [_subscription_row(row) for row in rows]


def subscription(tx: Cursor, tenant_id: str, subscription_id: str) -> SubscriptionRow | None:
    """One subscription; None if there is none."""
    row = tx.execute(
        _SUBSCRIPTIONS + " WHERE tenant_id = %s AND subscription_id = %s", (tenant_id, subscription_id)
    ).fetchone()
    return None if row is None else _subscription_row(row)


def _subscription_row(row: Sequence[Any]) -> SubscriptionRow:
    *columns, changes = row
    waiting = [WaitingChange(datetime.fromisoformat(at), *what) for at, *what in changes]
    return SubscriptionRow(*(*columns, waiting))


_SUBSCRIPTIONS = """
SELECT subscription_id, customer_id, plan, price_book_version, currency,
       CASE WHEN status = 'active' AND period_end <= trial_ends_at THEN 'trialing' ELSE status END,
       zone, starts_at, trial_ends_at, period_start, period_end, ends_at, ended_at, add_ons,
       (SELECT coalesce(json_agg(json_build_array(c.effective_at, c.plan, c.price_book_version, c.add_on, c.quantity)
                                 ORDER BY c.effective_at, c.sequence), '[]')
          FROM subscription_changes c
          JOIN tenants t USING (tenant_id)
         WHERE c.tenant_id = s.tenant_id AND c.subscription_id = s.subscription_id
           AND c.effective_at > coalesce(t.test_clock, clock_timestamp()))
  FROM subscriptions s
"""


def subscribers(tx: Cursor, tenant_id: str) -> list[Subscribers]:
    """How many subscriptions that have not ended are on each version of each plan."""
    rows = tx.execute(
        """
        SELECT plan, price_book_version, count(*)
          FROM subscriptions
         WHERE tenant_id = %s AND status <> 'ended'
         GROUP BY plan, price_book_version
         ORDER BY plan, price_book_version
        """,
        (tenant_id,),
    ).fetchall()
    return [Subscribers(*row) for row in rows]


def on_other_versions(tx: Cursor, tenant_id: str, plan: str, version: int) -> list[str]:
    """Subscriptions to `plan` that have not ended and are on another version than `version`, by id."""
    rows = tx.execute(
        """
        SELECT subscription_id
          FROM subscriptions
         WHERE tenant_id = %s AND plan = %s AND price_book_version <> %s AND status <> 'ended'
         ORDER BY subscription_id
        """,
        (tenant_id, plan, version),
    ).fetchall()
    return [subscription for (subscription,) in rows]


def book_versions(tx: Cursor, tenant_id: str, *, below: int | None = None, limit: int) -> list[PriceBookRow]:
    """Versions of the price book, newest first."""
    rows = tx.execute(
        """
        SELECT version, effective_at, published_at, meter_keys, plan_keys, coupon_codes
          FROM price_books
         WHERE tenant_id = %(tenant)s
           AND (%(below)s::integer IS NULL OR version < %(below)s)
         ORDER BY version DESC
         LIMIT %(limit)s
        """,
        {"tenant": tenant_id, "below": below, "limit": limit},
    ).fetchall()
    return [PriceBookRow(*row) for row in rows]


def price_book(tx: Cursor, tenant_id: str, version: int | None = None) -> PriceBookPublished | None:
    """A version of the price book, by default the newest; None if there is none."""
    if version is None:
        return price_books.newest(tx, tenant_id)
    try:
        return price_books.book(tx, tenant_id, version)
    except LookupError:
        return None


def invoice_rows(
    tx: Cursor,
    tenant_id: str,
    *,
    customer_id: str | None = None,
    status: str | None = None,
    after: int = 0,
    limit: int,
) -> list[InvoiceRow]:
    """Invoices in the order of their numbers."""
    rows = tx.execute(
        _INVOICES
        + """
         WHERE tenant_id = %(tenant)s
           AND (%(customer)s::text IS NULL OR customer_id = %(customer)s)
           AND (%(status)s::text IS NULL OR status = %(status)s)
           AND serial > %(after)s
         ORDER BY serial
         LIMIT %(limit)s
        """,
        {"tenant": tenant_id, "customer": customer_id, "status": status, "after": after, "limit": limit},
    ).fetchall()
    return [_invoice_row(row) for row in rows]


def invoice(tx: Cursor, tenant_id: str, id_or_number: str) -> IssuedInvoice | None:
    """One invoice with everything about it; None if there is none."""
    row = tx.execute(
        _INVOICES + " WHERE tenant_id = %(tenant)s AND (invoice_id = %(name)s OR number = %(name)s)",
        {"tenant": tenant_id, "name": id_or_number},
    ).fetchone()
    if row is None:
        return None
    brief = _invoice_row(row)
    kept = tx.execute(
        """
        SELECT i.body, i.canonical_hash, t.zone
          FROM invoices i
          JOIN tenants t USING (tenant_id)
         WHERE i.tenant_id = %s AND i.invoice_id = %s
        """,
        (tenant_id, brief.id),
    ).fetchone()
    assert kept is not None
    body, canonical_hash, zone = kept
    paying = payments(tx, tenant_id, invoice_id=brief.id, limit=1)
    return IssuedInvoice(
        row=brief,
        document=invoices.decoded(bytes(body)),
        canonical_hash=bytes(canonical_hash).hex(),
        zone=zone,
        buyer=customer_profile.read(tx, tenant_id, [brief.customer]).get(brief.customer, Profile()),
        payment=paying[0] if paying else None,
    )


_INVOICES = """
SELECT invoice_id, number, customer_id, subscription_id, reason, period_start, period_end, status, currency,
       subtotal_minor, discount_minor, tax_minor, total_minor, amount_due_minor, issued_at, due_at, paid_at, serial
  FROM invoices
"""


def _invoice_row(row: Sequence[Any]) -> InvoiceRow:
    currency = row[8]
    amounts = [Amount.of(minor, currency) for minor in row[9:14]]
    return InvoiceRow(*row[:8], *amounts, *row[14:])


def payments(
    tx: Cursor,
    tenant_id: str,
    *,
    invoice_id: str | None = None,
    customer_id: str | None = None,
    state: str | None = None,
    after: str = "",
    limit: int,
) -> list[PaymentRow]:
    """Payments by invoice id, each with its attempts."""
    rows = tx.execute(
        """
        SELECT invoice_id, customer_id, amount_minor, currency, state, provider, next_attempt_at, reference, settled_at
          FROM payments
         WHERE tenant_id = %(tenant)s
           AND (%(invoice)s::text IS NULL OR invoice_id = %(invoice)s)
           AND (%(customer)s::text IS NULL OR customer_id = %(customer)s)
           AND (%(state)s::text IS NULL OR state = %(state)s)
           AND invoice_id > %(after)s
         ORDER BY invoice_id
         LIMIT %(limit)s
        """,
        {
            "tenant": tenant_id,
            "invoice": invoice_id,
            "customer": customer_id,
            "state": state,
            "after": after,
            "limit": limit,
        },
    ).fetchall()
    attempts: dict[str, list[AttemptRow]] = {}
    for of_invoice, *attempt in tx.execute(
        """
        SELECT invoice_id, attempt, provider, state, decline_kind, decline_code, reference, started_at, answered_at,
               retry_at
          FROM payment_attempts
         WHERE tenant_id = %s AND invoice_id = ANY(%s)
         ORDER BY invoice_id, attempt
        """,
        (tenant_id, [row[0] for row in rows]),
    ).fetchall():
        attempts.setdefault(of_invoice, []).append(AttemptRow(*attempt))
    return [
        PaymentRow(
            of, payer, Amount.of(minor, currency), standing, provider, later, reference, at, attempts.get(of, [])
        )
        for of, payer, minor, currency, standing, provider, later, reference, at in rows
    ]


def balances(tx: Cursor, tenant_id: str) -> list[BalanceRow]:
    """The tenant's trial balance."""
    return [
        BalanceRow(
            account, Amount.of(debit, currency), Amount.of(credit, currency), Amount.of(debit - credit, currency)
        )
        for currency, account, debit, credit in ledger.balances(tx, tenant_id)
    ]
