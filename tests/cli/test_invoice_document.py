"""An invoice as people read it: a golden text, and a page that carries nothing foreign into a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.ids import CustomerId, InvoiceId, SubscriptionId
from billing.invoice import InvoiceDiscount, InvoiceFinalized, InvoiceLine
from billing.invoicing import BillingRun, Cut, InvoiceReason, LineKind, RatedLine
from billing.money import Money
from billing.period import Period
from billing.pricing import Pricing
from billing.segments import BilledSpan, Segment
from billing.tax import TaxAmount, TaxRate
from services.customer_profile import Profile
from services.invoice_document import as_html, as_text
from services.read_rows import Amount, AttemptRow, InvoiceRow, IssuedInvoice, PaymentRow

FEBRUARY = Period(datetime(2013, 2, 14, 5, tzinfo=UTC), datetime(2013, 3, 1, 5, tzinfo=UTC))
MARCH = Period(datetime(2013, 3, 1, 5, tzinfo=UTC), datetime(2013, 4, 1, 4, tzinfo=UTC))
ISSUED = MARCH.start
TAX = TaxRate(code="sales_tax", percent=Decimal("8.875"), jurisdiction="NYC")


def usd(minor: int) -> Money:
    return Money(minor, "USD")


def line(
    kind: LineKind, name: str, quantity: str | None, minor: int, off: int, text: str, period: Period
) -> InvoiceLine:
    number = Decimal(quantity) if quantity else None
    rated = RatedLine(
        kind=kind,
        charge=name.lower(),
        description=name,
        period=period,
        quantity=number,
        amount=usd(minor),
        explanation=text,
    )
    return InvoiceLine(rated=rated, discount=usd(off))


def finalized() -> InvoiceFinalized:
    lines = (
        line(LineKind.USAGE, "Departures", "1407", 1_586_650, 158_665, "1,000 x 12.00 + 407 x 9.50", FEBRUARY),
        line(LineKind.FEE, "Base fee", None, 50_000, 5_000, "500.00", MARCH),
    )
    pricing = Pricing(plan="airside", price_book_version=1, currency="USD")
    run = BillingRun(
        invoice_id=InvoiceId("inv_1"),
        subscription_id=SubscriptionId("s1"),
        customer_id=CustomerId("YV"),
        reason=InvoiceReason.PERIOD_END,
        currency="USD",
        rating_engine="1",
        segments=(Segment(span=BilledSpan(period=FEBRUARY, whole=FEBRUARY), pricing=pricing),),
        advance=Segment(span=BilledSpan(period=MARCH, whole=MARCH), pricing=pricing),
        cut=Cut(until=FEBRUARY.end, positions=()),
        taxes=(TAX,),
    )
    return InvoiceFinalized(
        invoice_id=run.invoice_id,
        number="NYC-000007",
        serial=7,
        subscription_id=run.subscription_id,
        customer_id=run.customer_id,
        run=run,
        lines=lines,
        discounts=(InvoiceDiscount(coupon="TEN", amount=usd(163_665)),),
        taxes=(TaxAmount(rate=TAX, base=usd(1_472_985), amount=usd(130_727)),),
        subtotal=usd(1_636_650),
        discount=usd(163_665),
        tax=usd(130_727),
        total=usd(1_603_712),
        credit_applied=usd(0),
        amount_due=usd(1_603_712),
        issued_at=ISSUED,
        due_at=ISSUED,
        seller="Port of New York Airports",
        postings=(),
    )


@pytest.fixture
def issued() -> IssuedInvoice:
    total = Amount.of(1_603_712, "USD")
    row = InvoiceRow(
        id="inv_1",
        number="NYC-000007",
        customer="YV",
        subscription="s1",
        reason="period_end",
        period_start=FEBRUARY.start,
        period_end=FEBRUARY.end,
        status="paid",
        subtotal=Amount.of(1_636_650, "USD"),
        discount=Amount.of(163_665, "USD"),
        tax=Amount.of(130_727, "USD"),
        total=total,
        amount_due=total,
        issued_at=ISSUED,
        due_at=ISSUED,
        paid_at=datetime(2013, 3, 2, 5, tzinfo=UTC),
        serial=7,
    )
    attempts = [
        AttemptRow(1, "sandbox", "declined", "soft", "insufficient_funds", None, ISSUED, ISSUED, MARCH.start),
        AttemptRow(2, "sandbox", "succeeded", None, None, "pi_2", ISSUED, row.paid_at, None),
    ]
    payment = PaymentRow("inv_1", "YV", total, "collected", "sandbox", None, "pi_2", row.paid_at, attempts)
    return IssuedInvoice(row, finalized(), "ab" * 32, "America/New_York", Profile("Mesa Airlines"), payment)


GOLDEN = """\
INVOICE NYC-000007                                             Port of New York Airports

  billed to     Mesa Airlines (YV)
  period        2013-02-14 .. 2013-03-01
  issued        2013-03-01, due 2013-03-01
  plan          airside, price book 1
  id            inv_1
----------------------------------------------------------------------------------------
  Departures                      2013-02-14 .. 2013-03-01           1,407     15,866.50
      = 1,000 x 12.00 + 407 x 9.50
      discount                                                                 -1,586.65
  Base fee                        2013-03-01 .. 2013-04-01                        500.00
      = 500.00
      discount                                                                    -50.00
                                                                          --------------
                                                                Subtotal       16,366.50
                                                              Coupon TEN       -1,636.65
                                                   Sales tax NYC 8.875 %        1,307.27
                                                               Total USD       16,037.12
----------------------------------------------------------------------------------------
  attempt 1 at sandbox declined: insufficient_funds, 2013-03-01; next on 2013-03-01
  attempt 2 at sandbox succeeded, 2013-03-02
  PAID  16,037.12 USD on 2013-03-02, reference pi_2
"""


def test_an_invoice_reads_like_this(issued: IssuedInvoice) -> None:
    assert as_text(issued) == GOLDEN


def test_a_page_says_what_the_text_says(issued: IssuedInvoice) -> None:
    page = as_html(issued)
    for piece in ("NYC-000007", "Mesa Airlines", "1,000 x 12.00 + 407 x 9.50", "15,866.50", "16,037.12", "ab" * 32):
        assert piece in page


def test_a_page_writes_amounts_in_the_locale_of_who_pays(issued: IssuedInvoice) -> None:
    page = as_html(replace(issued, buyer=Profile("Mesa Airlines", locale="de-DE")))
    for piece in ("15.866,50\xa0$", "-1.586,65\xa0$", "16.037,12\xa0$"):
        assert piece in page
    assert "15,866.50" not in page


def test_a_page_needs_nothing_from_elsewhere(issued: IssuedInvoice) -> None:
    page = as_html(issued)
    assert not re.search(r"(src|href)=|url[(]|@import|<script", page)


def test_a_name_cannot_become_markup(issued: IssuedInvoice) -> None:
    page = as_html(replace(issued, buyer=Profile("<script>alert(1)</script>$title", '"><img src=x>')))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$title" in page
