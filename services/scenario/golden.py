"""What a scenario came to, as text: invoices with the arithmetic of each line, the journal, and whatever is left over.

Only what happened is printed: no section is empty, and nothing in it depends on how it was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

from billing.invoice import InvoiceFinalized
from billing.money import Money
from billing.period import Period
from services import invoice_document
from services.invoice_document import WIDTH, day, money, span

_ACCOUNT = 44
_SIDE = 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line of the timeline that the rules refused."""

    at: datetime
    text: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Span:
    """When a customer's usage is billed."""

    customer: str
    start: datetime
    end: datetime | None
    """None while nobody canceled."""


@dataclass(slots=True)
class Outcome:
    """What came of a scenario."""

    zone: str
    invoices: Sequence[InvoiceFinalized] = ()
    """In the order of their numbers."""
    refusals: Sequence[Refusal] = ()
    credit: Sequence[tuple[str, Money]] = ()
    """What is left, by customer."""
    received: int = 0
    """Usage events."""
    counted: Sequence[tuple[str, datetime, int]] = ()
    """Customer, time and number of counted events, as they are by now; without those that were voided."""
    duplicates: int = 0
    refused: Sequence[tuple[str, str, str]] = ()
    """Id, code and detail of each event that was not counted."""
    voided: int = 0
    amended: int = 0
    uncorrected: Sequence[tuple[str, str, str]] = ()
    """Id, code and detail of each void and amendment that was refused."""
    spans: Sequence[Span] = field(default_factory=list)

    @property
    def unmatched(self) -> int:
        """Counted events that no subscription bills."""
        return sum(
            count
            for customer, at, count in self.counted
            if not any(
                each.customer == customer and each.start <= at and (each.end is None or at < each.end)
                for each in self.spans
            )
        )


def text(outcome: Outcome) -> str:
    """The whole result, ending with a line break."""
    zone = ZoneInfo(outcome.zone)
    parts = [_invoice(each, zone) for each in outcome.invoices]
    parts += [_journal(outcome.invoices), _credit(outcome), _usage(outcome), _refusals(outcome, zone)]
    made = "\n\n".join("\n".join(part) for part in parts if part)
    return (made or "nothing was billed") + "\n"


def _invoice(document: InvoiceFinalized, zone: ZoneInfo) -> list[str]:
    spans = [each.period for each in (document.run.arrears, document.run.advance) if each]
    left = f"INVOICE {document.number}  {document.customer_id}"
    rows = [f"{left}{_issued(document, spans[0], zone):>{WIDTH - len(left)}}"]
    for line in document.lines:
        rows += invoice_document.line_text(line, zone)
    sums = invoice_document.sums(document)
    if len(sums) == 2:  # a subtotal that is the total says nothing
        sums = sums[1:]
    return [*rows, *(invoice_document.sum_text(label, amount) for label, amount in sums)]


def _issued(document: InvoiceFinalized, period: Period, zone: ZoneInfo) -> str:
    due = "" if document.due_at == document.issued_at else f", due {day(document.due_at, zone)}"
    return f"{span(period, zone)}, issued {day(document.issued_at, zone)}{due}"


def _journal(invoices: Sequence[InvoiceFinalized]) -> list[str]:
    rows = []
    number = max((len(each.number) + 2 for each in invoices), default=0)
    name = _ACCOUNT - number - len("  dr ")
    for each in invoices:
        head = each.number
        for posting in sorted(each.postings, key=lambda posting: posting.amount.minor < 0):  # debits first
            side = "dr" if posting.amount.minor > 0 else "cr"
            account = invoice_document.label_of(posting.account)
            indent = _SIDE if side == "dr" else 2 * _SIDE
            rows.append(f"  {head:<{number}}{side} {account:<{name}}{money(abs(posting.amount)):>{indent}}")
            head = ""
    return ["JOURNAL", *rows] if rows else []


def _credit(outcome: Outcome) -> list[str]:
    rows = [f"  {customer:<42}{money(amount):>{_SIDE}} {amount.currency}" for customer, amount in outcome.credit]
    return ["CREDIT", *rows] if rows else []


def _usage(outcome: Outcome) -> list[str]:
    """What became of usage that was not simply counted and billed."""
    conflicts = sum(code == "id_conflict" for _, code, _ in outcome.refused)
    counts = {
        "billed or to be billed": sum(count for *_, count in outcome.counted) - outcome.unmatched,
        "outside of any subscription": outcome.unmatched,
        "duplicate": outcome.duplicates,
        "in conflict": conflicts,
        "rejected": len(outcome.refused) - conflicts,
        "voided": outcome.voided,
        "amended": outcome.amended,
        "not to be corrected": len(outcome.uncorrected),
    }
    if not any(list(counts.values())[1:]):
        return []
    rows = [f"  {count:,} {what}" for what, count in counts.items() if count]
    told = dict.fromkeys((*outcome.refused, *outcome.uncorrected))
    rows += [f"      {id}: {detail} [{code}]" for id, code, detail in told]
    return [f"USAGE  {outcome.received:,} received", *rows]


def _refusals(outcome: Outcome, zone: ZoneInfo) -> list[str]:
    rows = []
    for each in outcome.refusals:
        rows += [f"  {day(each.at, zone)}  {each.text}", f"      {each.detail} [{each.code}]"]
    return ["REFUSED", *rows] if rows else []
