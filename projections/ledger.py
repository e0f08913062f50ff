"""The ledger: every posting of every event, and the balances that follow."""

from __future__ import annotations

from collections.abc import Sequence

from billing.envelope import EventEnvelope
from billing.errors import CorruptHistory
from billing.invoice import InvoiceFinalized, InvoicePaid
from billing.ledger import Posting, imbalance
from billing.prepaid import CreditExpired, CreditGranted
from projections.generation import Tx


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Enter an event's postings.

    Raises:
        CorruptHistory: they do not sum to zero per currency.
    """
    match envelope.event:
        case InvoiceFinalized(postings=postings) | InvoicePaid(postings=postings) as e if postings:
            _enter(tx, envelope, postings, e.invoice_id)
        case CreditGranted(postings=postings) | CreditExpired(postings=postings):
            _enter(tx, envelope, postings, None)


def _enter(tx: Tx, envelope: EventEnvelope, postings: Sequence[Posting], invoice: str | None) -> None:
    meta, left = envelope.meta, imbalance(postings)
    if left:
        raise CorruptHistory(f"{meta.event_id}: postings are off by {left} (minor units)")
    tx.execute(
        _ENTER,
        {
            "tenant": meta.tenant,
            "sequence": meta.sequence,
            "accounts": [str(each.account) for each in postings],
            "currencies": [each.amount.currency for each in postings],
            "minors": [each.amount.minor for each in postings],
            "type": meta.type,
            "invoice": invoice,
            "customer": envelope.event.customer_id,
            "at": meta.occurred_at,
        },
    )


# One statement an entry: the trigger looks at the whole of it.
_ENTER = """
INSERT INTO ledger_entries (tenant_id, sequence, account, currency, minor, event_type, invoice_id, customer_id,
                            occurred_at)
SELECT %(tenant)s, %(sequence)s, posting.account, posting.currency, posting.minor, %(type)s, %(invoice)s, %(customer)s,
       %(at)s
  FROM unnest(%(accounts)s::text[], %(currencies)s::text[], %(minors)s::bigint[]) AS posting (account, currency, minor)
"""


def balances(tx: Tx, tenant: str) -> list[tuple[str, str, int, int]]:
    """(currency, account, debit, credit) in minor units: the tenant's trial balance."""
    return tx.execute(
        """
        SELECT currency, account, debit_minor, credit_minor
          FROM trial_balance
         WHERE tenant_id = %s
         ORDER BY currency, account
        """,
        (tenant,),
    ).fetchall()
