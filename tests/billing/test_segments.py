"""Laws of segments: they tile their period, and no chain of changes loses or makes a cent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.catalog import Plan
from billing.invoicing import LineKind, lines, needs
from billing.metering import NOTHING
from billing.money import Money, half_up
from billing.period import Period
from billing.plan_change import ChangePlan
from billing.price import Charge, Flat
from billing.pricing import Pricing
from billing.proration import Proration, settled
from billing.segments import BilledSpan, tiled
from billing.subscription import Active, CancelSubscription
from tests.billing.tenants import ACTIVATE, BOOK, CREATE_C1, REGISTER, S1, SUBSCRIBE, Life, close, issue, until

JANUARY, FEBRUARY = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
MONTH = Period(JANUARY, FEBRUARY)
SPAN = BilledSpan(period=MONTH, whole=MONTH)
KEYS = ("a", "b", "c")

instants = st.timedeltas(timedelta(0), timedelta(days=31)).map(lambda after: JANUARY + after)
few_instants = st.integers(0, 30).map(lambda days: JANUARY + timedelta(days=days))
pricings = st.sampled_from([Pricing(plan=key, price_book_version=1, currency="USD") for key in KEYS])
prices = st.decimals(Decimal("0.00"), Decimal("9999.99"), places=2)


@given(pricings, st.lists(st.tuples(instants | few_instants, pricings), max_size=8))
def test_segments_tile_the_period(first: Pricing, changes: list[tuple[datetime, Pricing]]) -> None:
    timeline = [(JANUARY, first), *sorted(changes, key=lambda change: change[0])]
    made = tiled(SPAN, timeline)
    assert (made[0].period.start, made[-1].period.end) == (JANUARY, FEBRUARY)
    assert all(a.period.end == b.period.start for a, b in pairwise(made))
    assert all(a.pricing != b.pricing for a, b in pairwise(made))
    assert sum((each.span.share(Proration.SECOND) for each in made), Fraction(0)) == 1
    for segment in made:
        in_force = [pricing for at, pricing in timeline if at <= segment.period.start][-1]
        assert segment.pricing == in_force


@given(
    st.lists(st.tuples(instants | few_instants, pricings), max_size=8),
    st.sampled_from(["UTC", "America/New_York", "Pacific/Kiritimati"]),
    st.sampled_from([Proration.SECOND, Proration.DAY]),
)
def test_the_shares_of_any_chain_of_changes_sum_to_one(
    changes: list[tuple[datetime, Pricing]], zone: str, rule: Proration
) -> None:
    timeline = [
        (JANUARY, Pricing(plan="a", price_book_version=1, currency="USD")),
        *sorted(changes, key=lambda c: c[0]),
    ]
    made = tiled(replace(SPAN, zone=zone), timeline)
    assert sum((each.span.share(rule) for each in made), Fraction(0)) == 1


@given(st.lists(st.fractions(-1000, 1000), max_size=12))
def test_parts_are_settled_to_their_exact_sum(parts: list[Fraction]) -> None:
    made = settled(parts, "USD")
    assert sum(each.minor for each in made) == half_up(sum(parts, Fraction(0)) * 100)
    assert all(abs(each.minor - part * 100) < 1 for each, part in zip(made, parts, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    fees=st.tuples(prices, prices, prices),
    changes=st.lists(st.tuples(instants | few_instants, st.sampled_from(KEYS)), max_size=6),
    ends_at=st.none() | few_instants.filter(lambda at: at > JANUARY),
    rule=st.sampled_from([Proration.SECOND, Proration.DAY]),
)
def test_a_chain_of_changes_neither_loses_nor_makes_a_cent(
    fees: tuple[Decimal, ...], changes: list[tuple[datetime, str]], ends_at: datetime | None, rule: Proration
) -> None:
    """What was paid in advance, less what is given back, plus what is charged, is the exact sum rounded once."""
    plans = tuple(_plan(key, fee, rule) for key, fee in zip(KEYS, fees, strict=True))
    life = Life().given(REGISTER, replace(BOOK, plans=plans), CREATE_C1, replace(SUBSCRIBE, plan="a"), ACTIVATE)
    life.given(issue(life, *_lines(life)))
    paid = life.last_invoice.total.minor
    for at, plan in sorted(changes, key=lambda change: change[0]):
        if at < (ends_at or FEBRUARY):
            _until(life, at).given(ChangePlan(subscription_id=S1, plan=plan, at_period_end=False))
    if ends_at is not None:
        _until(life, ends_at).given(CancelSubscription(subscription_id=S1, at_period_end=False))
    active = life.state.subscriptions[S1]
    assert isinstance(active, Active)
    _until(life, active.boundary).given(close(active.boundary))
    run = life.decided[0].run
    cost = dict(zip(KEYS, fees, strict=True))
    shares = [(cost[each.pricing.plan], each.span.share(rule)) for each in run.segments]
    exact = sum((Fraction(fee) * share for fee, share in shares), Fraction(0))
    settling = [
        each.amount.minor
        for each in lines(run, life.state.catalog.by_version, (), {})
        if each.kind is LineKind.UNUSED_FEE or (each.kind is LineKind.FEE and each.period.start < active.boundary)
    ]
    expected = Money.from_major(exact, "USD").minor
    if [each.pricing.plan for each in run.segments] == ["a"]:  # one credit, which is what is rounded
        expected = paid - half_up((Fraction(cost["a"]) - exact) * 100)
    assert paid + sum(settling) == expected


def _plan(key: str, fee: Decimal, rule: Proration) -> Plan:
    charge = Charge(key="fee", name="Fee", model=Flat(fee), in_advance=True)
    return Plan(key=key, name=key, currency="USD", charges=(charge,), proration=rule)


def _lines(life: Life) -> tuple[object, ...]:
    run = life.envelopes[-1].event.run
    books = life.state.catalog.by_version
    return lines(run, books, (), dict.fromkeys(needs(run, books, ()), NOTHING))


def _until(life: Life, at: datetime) -> Life:
    return life.given(until(at)) if life.state.tenant.now(at) < at else life  # type: ignore[union-attr]
