"""Invoices: the issued documents, whole for printing and by columns for lists, sums and searches."""

from __future__ import annotations

from billing.envelope import EventEnvelope
from billing.invoice import InvoiceFinalized, InvoicePaid
from projections.generation import Tx
from schemas.codec import decode_event, encode_event
from schemas.hashing import document_hash


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Keep an issued invoice, and mark it when nothing of it is due any more."""
    match envelope.event:
        case InvoiceFinalized() as e:
            tx.execute(_ISSUE, _columns(envelope, e))
            _lines(tx, envelope.meta.tenant, e)
        case InvoicePaid() as e:
            tx.execute(_PAID, (e.paid_at, e.amount.minor, envelope.meta.tenant, e.invoice_id))


def _columns(envelope: EventEnvelope, e: InvoiceFinalized) -> dict[str, object]:
    billed = e.run.arrears or e.run.advance
    assert billed is not None
    return {
        "tenant": envelope.meta.tenant,
        "invoice": e.invoice_id,
        "number": e.number,
        "serial": e.serial,
        "subscription": e.subscription_id,
        "customer": e.customer_id,
        "reason": e.run.reason,
        "plan": e.run.plan,
        "version": e.run.price_book_version,
        "engine": e.run.rating_engine,
        "start": billed.period.start,
        "end": billed.period.end,
        "currency": e.total.currency,
        "subtotal": e.subtotal.minor,
        "discount": e.discount.minor,
        "tax": e.tax.minor,
        "total": e.total.minor,
        "credit": e.credit_applied.minor,
        "due": e.amount_due.minor,
        "issued_at": e.issued_at,
        "due_at": e.due_at,
        "seller": e.seller,
        "sequence": envelope.meta.sequence,
        "hash": document_hash(e),
        "body": encode_event(envelope),
    }


_ISSUE = """
INSERT INTO invoices (tenant_id, invoice_id, number, serial, subscription_id, customer_id, reason, plan,
                      price_book_version, rating_engine, period_start, period_end, currency, subtotal_minor,
                      discount_minor, tax_minor, total_minor, credit_applied_minor, amount_due_minor, status,
                      issued_at, due_at, seller, sequence, canonical_hash, body)
VALUES (%(tenant)s, %(invoice)s, %(number)s, %(serial)s, %(subscription)s, %(customer)s, %(reason)s, %(plan)s,
        %(version)s, %(engine)s, %(start)s, %(end)s, %(currency)s, %(subtotal)s,
        %(discount)s, %(tax)s, %(total)s, %(credit)s, %(due)s, 'open',
        %(issued_at)s, %(due_at)s, %(seller)s, %(sequence)s, %(hash)s, %(body)s)
"""

_PAID = """
UPDATE invoices
   SET status = 'paid', paid_at = %s, paid_minor = %s
 WHERE tenant_id = %s AND invoice_id = %s
"""


def _lines(tx: Tx, tenant: str, e: InvoiceFinalized) -> None:
    tx.executemany(
        _LINE,
        [
            (
                tenant,
                e.invoice_id,
                number,
                line.rated.kind,
                line.rated.charge,
                line.rated.description,
                line.rated.period.start,
                line.rated.period.end,
                line.rated.quantity,
                line.rated.amount.currency,
                line.rated.amount.minor,
                line.discount.minor,
                line.rated.explanation,
            )
            for number, line in enumerate(e.lines, 1)
        ],
    )
    tx.executemany(
        _DISCOUNT,
        [(tenant, e.invoice_id, each.coupon, each.amount.currency, each.amount.minor) for each in e.discounts],
    )
    tx.executemany(
        _TAX,
        [
            (
                tenant,
                e.invoice_id,
                number,
                each.rate.code,
                each.rate.jurisdiction,
                each.rate.percent,
                each.rate.inclusive,
                each.amount.currency,
                each.base.minor,
                each.amount.minor,
            )
            for number, each in enumerate(e.taxes, 1)
        ],
    )


_LINE = """
INSERT INTO invoice_lines (tenant_id, invoice_id, line, kind, charge, description, period_start, period_end, quantity,
                           currency, amount_minor, discount_minor, explanation)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""

_DISCOUNT = """
INSERT INTO invoice_discounts (tenant_id, invoice_id, coupon, currency, amount_minor)
VALUES (%s, %s, %s, %s, %s)
"""

_TAX = """
INSERT INTO invoice_taxes (tenant_id, invoice_id, tax, code, jurisdiction, percent, inclusive, currency, base_minor,
                           amount_minor)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def document(tx: Tx, tenant: str, invoice_id: str) -> InvoiceFinalized | None:
    """The whole invoice as it was issued; None if there is no such invoice."""
    row = tx.execute(
        "SELECT body FROM invoices WHERE tenant_id = %s AND invoice_id = %s", (tenant, invoice_id)
    ).fetchone()
    return None if row is None else decoded(bytes(row[0]))


def by_number(tx: Tx, tenant: str, number: str) -> InvoiceFinalized | None:
    """The invoice with this number; None if there is none."""
    row = tx.execute("SELECT body FROM invoices WHERE tenant_id = %s AND number = %s", (tenant, number)).fetchone()
    return None if row is None else decoded(bytes(row[0]))


def decoded(body: bytes) -> InvoiceFinalized:
    """The invoice in the event `body`."""
    finalized = decode_event(body).event
    assert isinstance(finalized, InvoiceFinalized)
    return finalized
