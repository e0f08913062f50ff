"""Laws of charges with intervals of their own, over random histories of plans, anchors, trials and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.invoicing import BillingRun, LineKind, lines, needs
from billing.metering import Measured
from billing.period import Period
from billing.plan_change import ChangeBillingAnchor, ChangePlan
from billing.price import Flat
from billing.subscription import Active, Scheduled
from tests.billing.tenants import (
    ACTIVATE,
    BASE_FEE,
    BOOK,
    CALLS_CHARGE,
    CREATE_C1,
    JANUARY,
    REGISTER,
    S1,
    SUBSCRIBE,
    Life,
    close,
    issue,
)
from tests.billing.test_own_intervals import CANCEL_NOW, OWN_ANCHOR, QUARTER_CALLS, YEAR_FEE, to

DEARER = replace(YEAR_FEE, model=Flat(Decimal("730.00")))
LATER = replace(YEAR_FEE, key="support", in_advance=False, interval="P3M")
SOLD = (
    replace(OWN_ANCHOR, key="a", charges=(BASE_FEE, YEAR_FEE, QUARTER_CALLS)),
    replace(OWN_ANCHOR, key="b", charges=(DEARER, LATER, CALLS_CHARGE), trial="P10D"),
    replace(OWN_ANCHOR, key="c", charges=(YEAR_FEE, LATER), trial="P1M"),
    replace(OWN_ANCHOR, key="d", interval="P1W", charges=(BASE_FEE, replace(YEAR_FEE, interval="P4W"))),
)
KEYS = st.sampled_from([each.key for each in SOLD])
acts = st.tuples(
    st.integers(0, 40),
    st.one_of(
        st.builds(lambda key, later: ("plan", key, later), KEYS, st.booleans()),
        st.builds(lambda days, later: ("anchor", days, later), st.integers(-20, 20), st.booleans()),
        st.just(("none", None, True)),
    ),
)


def played(first: str, story: Sequence[Any], canceled_after: int | None, wishes: dict[str, Any]) -> Life:
    """A random history: commands that may be refused, and every closing and invoice as soon as it is due."""
    life = Life().given(REGISTER, replace(BOOK, plans=SOLD), CREATE_C1, replace(SUBSCRIBE, plan=first, **wishes))
    life.given(ACTIVATE)
    _issued(life)
    now = JANUARY
    for days, (what, which, at_period_end) in story:
        now += timedelta(days=days, hours=7)
        _close_until(life, now)
        match what:
            case "plan":
                life.when(ChangePlan(subscription_id=S1, plan=which, at_period_end=at_period_end))
            case "anchor":
                anchor = now + timedelta(days=which)
                life.when(ChangeBillingAnchor(subscription_id=S1, anchor=anchor, at_period_end=at_period_end))
    if canceled_after is not None:
        _close_until(life, now + timedelta(days=canceled_after))
        life.when(CANCEL_NOW)
    _close_until(life, now + timedelta(days=200))
    return life


def _close_until(life: Life, now: datetime) -> None:
    while isinstance(active := life.state.subscriptions[S1], Active) and active.boundary <= now:
        to(life, active.boundary).given(close(active.boundary))
        _issued(life)
    assert not isinstance(life.state.subscriptions[S1], Scheduled)
    to(life, now)


def _issued(life: Life) -> None:
    run = getattr(life.decided[0], "run", None)
    if run is None:
        return
    books = life.state.catalog.by_version
    rated = lines(run, books, (), dict.fromkeys(needs(run, books, ()), Measured(Decimal(0))))
    life.given(issue(life, *rated))


histories = st.tuples(
    KEYS,
    st.lists(acts, max_size=5),
    st.none() | st.integers(0, 100),
    st.fixed_dictionaries({}, optional={"trial": st.sampled_from(["P0D", "P3D"])}),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_what_is_billed_of_each_charge_tiles_time(history: Any) -> None:
    """Whatever happens, each charge is billed without overlap, and without a gap while its plan has it."""
    life = played(*history)
    runs = _runs(life)
    closed = [segment for run in runs for segment in run.segments]
    assert all(a.period.end == b.period.start for a, b in pairwise(closed))
    returned = {(each.charge, each.period): each.unused.start for run in runs for each in run.unused if each.pricing}
    used: dict[str, list[Period]] = {}
    for each in (charge for run in runs for charge in run.charges):
        period = each.span.period
        until = returned.get((each.charge, period), period.end)
        if period.start < until:
            used.setdefault(each.charge, []).append(Period(period.start, until))
    for charge, spans in used.items():
        having = {plan.key for plan in SOLD if charge in [one.key for one in plan.charges if one.interval]}
        for a, b in pairwise(sorted(spans, key=lambda each: each.start)):
            assert a.end <= b.start, charge
            gap = Period(a.end, b.start)
            plans = {each.pricing.plan for each in closed if each.period.overlap(gap) and not each.pricing.in_trial}
            assert not having & plans, charge
    assert life.folded() == life.state


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_fees_of_any_history_are_the_price_of_the_time_used(history: Any) -> None:
    """To half a minor unit for each line, which is rounded."""
    life = played(*history)
    books = life.state.catalog.by_version
    runs = _runs(life)
    returned = {(each.charge, each.period): each for run in runs for each in run.unused if each.pricing}
    fees = [
        line
        for run in runs
        for line in lines(run, books, (), dict.fromkeys(needs(run, books, ()), Measured(Decimal(0))))
        if line.kind in (LineKind.FEE, LineKind.UNUSED_FEE) and line.charge in ("licence", "support")
    ]
    exact = Fraction(0)
    for each in (charge for run in runs for charge in run.charges if charge.charge in ("licence", "support")):
        (plan,) = (plan for plan in SOLD if plan.key == each.pricing.plan)
        (model,) = (one.model for one in plan.charges if one.key == each.charge)
        assert isinstance(model, Flat)
        share = Fraction(each.span.period.microseconds, each.span.whole.microseconds)
        back = returned.get((each.charge, each.span.period))
        if back is not None:
            share *= 1 - Fraction(back.unused.microseconds, back.period.microseconds)
        exact += Fraction(model.amount) * share
    assert abs(sum(line.amount.minor for line in fees) - exact * 100) <= len(fees)


def _runs(life: Life) -> list[BillingRun]:
    kinds = ("SubscriptionActivated", "BillingPeriodClosed")
    found = [each.event.run for each in life.envelopes if each.meta.type in kinds]
    return [run for run in found if run is not None]
