"""An invoice for people: as text for a terminal, as HTML for print. Both say how each amount came about.

What is shown comes from the issued document alone, but for the payer's name and the payment's state. The page writes
amounts in the payer's locale, the terminal plainly.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from billing.invoice import InvoiceFinalized, InvoiceLine
from billing.money import Money
from billing.period import Period
from infra.money_format import localized

if TYPE_CHECKING:  # scenarios print invoices without a database
    from services.read_rows import Amount, IssuedInvoice, PaymentRow

WIDTH = 88
_AMOUNT = 14
_PAGE = Path(__file__).with_name("invoice_page.html")


def as_text(issued: IssuedInvoice) -> str:
    """The invoice as lines of text."""
    document, zone = issued.document, ZoneInfo(issued.zone)
    title = f"INVOICE {document.number}"
    rows = [
        f"{title}{document.seller:>{WIDTH - len(title)}}",
        "",
        f"  billed to     {payer(issued)}",
        f"  period        {span(Period(issued.row.period_start, issued.row.period_end), zone)}",
        f"  issued        {day(document.issued_at, zone)}, due {day(document.due_at, zone)}",
        f"  plan          {document.run.plan}, price book {document.run.price_book_version}",
        f"  id            {document.invoice_id}",
        "-" * WIDTH,
    ]
    for line in document.lines:
        rows += line_text(line, zone)
    rows.append(" " * (WIDTH - _AMOUNT) + "-" * _AMOUNT)
    rows += [sum_text(label, amount) for label, amount in sums(document)]
    rows.append("-" * WIDTH)
    rows += [f"  {each}" for each in payment_story(issued, zone)]
    return "\n".join(rows) + "\n"


def line_text(line: InvoiceLine, zone: ZoneInfo) -> list[str]:
    """A line and the arithmetic below it."""
    rated = line.rated
    quantity = f"{rated.quantity.normalize():,f}" if rated.quantity is not None else ""
    left = f"{f'  {rated.description}':<33} {span(rated.period, zone)}"
    right = f"{quantity}{money(rated.amount):>{_AMOUNT}}"
    made = [f"{left}{right:>{WIDTH - len(left)}}"]
    if len(made[0]) > WIDTH:  # long names, or spans with times of day, take a line of their own
        made = [left, f"{right:>{WIDTH}}"]
    made += [f"      = {piece}" for piece in _wrapped(rated.explanation, WIDTH - 8)]
    if line.discount.minor:
        made.append(f"      {'discount':<{WIDTH - 6 - _AMOUNT}}{money(-line.discount):>{_AMOUNT}}")
    return made


def sum_text(label: str, amount: Money) -> str:
    """A sum below the lines."""
    return f"{label:>{WIDTH - _AMOUNT - 2}}  {money(amount):>{_AMOUNT}}"


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def payer(issued: IssuedInvoice) -> str:
    """Who pays: the name if one is known, and the id."""
    name, id = issued.buyer.name, issued.document.customer_id
    return f"{name} ({id})" if name else str(id)


def sums(document: InvoiceFinalized) -> list[tuple[str, Money]]:
    """What stands below the lines, from the subtotal to what is due."""
    made = [("Subtotal", document.subtotal)]
    made += [(f"Coupon {each.coupon}", -each.amount) for each in document.discounts]
    for each in document.taxes:
        where = f" {each.rate.jurisdiction}" if each.rate.jurisdiction else ""
        contained = ", contained" if each.rate.inclusive else ""
        percent = format(each.rate.percent.normalize(), "f")
        made.append((f"{label_of(each.rate.code)}{where} {percent} %{contained}", each.amount))
    made.append((f"Total {document.total.currency}", document.total))
    if document.credit_applied.minor:
        made += [(f"Paid by credit {each.grant_id}", -each.amount) for each in document.credits]
        granted = sum((each.amount for each in document.credits), Money.zero(document.total.currency))
        rest = document.credit_applied - granted
        made += [("Paid by credit", -rest)] if rest.minor else []
        made.append(("Amount due", document.amount_due))
    return made


def payment_story(issued: IssuedInvoice, zone: ZoneInfo) -> list[str]:
    """How the payment went, attempt by attempt, and where it stands."""
    payment, row = issued.payment, issued.row
    if payment is None:
        if row.status != "paid":
            return ["open"]
        return ["nothing was due"] if not row.amount_due.minor else ["paid"]
    told = []
    for each in payment.attempts:
        said = f"attempt {each.attempt} at {each.provider} {each.state}"
        if each.decline_code:
            said += f": {each.decline_code}"
        if each.answered_at:
            said += f", {day(each.answered_at, zone)}"
        if each.retry_at:
            said += f"; next on {day(each.retry_at, zone)}"
        told.append(said)
    return [*told, _standing(payment, row.paid_at, zone)]


def _standing(payment: PaymentRow, paid_at: datetime | None, zone: ZoneInfo) -> str:
    amount = f"{thousands(payment.amount)} {payment.amount.currency}"
    if payment.state == "collected":
        reference = f", reference {payment.reference}" if payment.reference else ""
        return f"PAID  {amount} on {day(paid_at or payment.settled_at, zone)}{reference}"
    if payment.state == "exhausted":
        return f"NOT COLLECTED  {amount}: no further attempt is planned"
    later = f", next attempt {day(payment.next_attempt_at, zone)}" if payment.next_attempt_at else ""
    return f"OPEN  {amount} ({payment.state}{later})"


def money(amount: Money) -> str:
    """`1,234.56`, or `-1,234.56`."""
    return f"{amount.major():,f}"


def thousands(amount: Amount) -> str:
    """The same of a row."""
    return f"{Decimal(amount.decimal):,f}"


def day(at: datetime | None, zone: ZoneInfo) -> str:
    """The local day, with the time unless it is midnight."""
    if at is None:
        return "-"
    local = at.astimezone(zone)
    clock = "" if (local.hour, local.minute, local.second) == (0, 0, 0) else local.strftime(" %H:%M")
    return local.strftime("%Y-%m-%d") + clock


def span(period: Period, zone: ZoneInfo) -> str:
    """`2013-01-01 .. 2013-02-01`: from a day, up to another that is not included."""
    return f"{day(period.start, zone)} .. {day(period.end, zone)}"


def label_of(code: str) -> str:
    """A code as a label: `sales_tax` as `Sales tax`."""
    words = code.replace("_", " ")
    return words[:1].upper() + words[1:]


def as_html(issued: IssuedInvoice) -> str:
    """The invoice as one page of HTML that needs nothing else, made for paper and screen."""
    document, zone = issued.document, ZoneInfo(issued.zone)
    write = written_for(issued.buyer.locale)
    facts = {
        "Issued": day(document.issued_at, zone),
        "Due": day(document.due_at, zone),
        "Service period": span(Period(issued.row.period_start, issued.row.period_end), zone),
    }
    status = "Paid" if issued.row.status == "paid" else "Open"
    total = document.total
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Invoice {document.number}"),
        seller=escape(document.seller),
        payer=escape(issued.buyer.name or document.customer_id),
        payer_id=escape(document.customer_id if issued.buyer.name else ""),
        email=escape(issued.buyer.email),
        number=escape(document.number),
        status=status,
        status_class=status.lower(),
        total=escape(write(total) if issued.buyer.locale else f"{money(total)} {total.currency}"),
        facts="".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()),
        lines="".join(_html_line(line, zone, write) for line in document.lines),
        sums="".join(_html_sum(label, write(amount)) for label, amount in sums(document)),
        payment="".join(f"<li>{escape(each)}</li>" for each in payment_story(issued, zone)),
        version=escape(f"{document.run.plan}, price book {document.run.price_book_version}"),
        zone=escape(issued.zone),
        hash=escape(issued.canonical_hash),
        id=escape(document.invoice_id),
    )


def written_for(locale: str) -> Callable[[Money], str]:
    """How amounts are written for a reader; plain figures if the locale is not known."""
    return partial(localized, locale=locale) if locale else money


def _html_line(line: InvoiceLine, zone: ZoneInfo, write: Callable[[Money], str]) -> str:
    rated = line.rated
    quantity = f"{rated.quantity.normalize():,f}" if rated.quantity is not None else ""
    discount = ""
    if line.discount.minor:
        discount = f'<div class="off">{escape(write(-line.discount))}</div>'
    return (
        f'<tr><td><div class="what">{escape(rated.description)}</div>'
        f'<div class="how">{escape(rated.explanation)}</div></td>'
        f'<td class="when">{escape(span(rated.period, zone))}</td>'
        f'<td class="number">{escape(quantity)}</td>'
        f'<td class="number">{escape(write(rated.amount))}{discount}</td></tr>'
    )


def _html_sum(label: str, amount: str) -> str:
    grand = ' class="grand"' if label.startswith("Total ") else ""
    return f'<tr{grand}><td>{escape(label)}</td><td class="number">{escape(amount)}</td></tr>'
