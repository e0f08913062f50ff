"""What `tallybook price` is asked: a charge, its currency, and what was used. From flags, a file, or a catalogue.

    currency: USD
    charge: {name: Calls, free_units: 100, model: {type: per_unit, unit: 0.01}}
    quantity: 1407                        # or one of the following
    cells: [{values: [eu], quantity: 40}, {values: [us], quantity: 2}]
    transactions: [500, 10.50]
    events: [{properties: {gb: 5}}]       # with a meter: {aggregation: sum, value: gb}
    period: {start: 2026-06-01T00:00:00Z, end: 2026-07-01T00:00:00Z}      # of the events, for a level

A fault names its field, such as `charge.model.tiers[1].up_to`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from billing.catalog_check import check_level
from billing.errors import Rejected
from billing.held import is_held
from billing.invoicing import Need
from billing.metering import NOTHING, Aggregation, Measured, Meter, UsageEvent, check_meter
from billing.money import EXACT, exponent
from billing.period import Period
from billing.price import Charge, Flat, Percentage
from billing.price_check import check
from billing.quantity import regrouped
from billing.tenant import SPAN_MAX, UsageBounds
from services.catalog_file import read as read_catalog
from services.exact_values import ExactDecimal, Instant, Name, Text, UnloggedDecimal
from services.meter_expressions import check_expression
from services.positioned_yaml import Document, Unreadable, load
from services.scenario.usage import UsageLog
from services.shapes import Fault, StrictModel, faults, model_of, value_of

ChargeSection = model_of(Charge)
MeterSection = model_of(Meter)
_BUYER = "customer"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BadRequest(Exception):
    """It cannot be priced; each fault has its line, or None where no file was read."""

    def __init__(self, found: Sequence[tuple[int | None, Fault]]) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.detail}" for _, fault in found))
        self.found = list(found)


@dataclass(frozen=True, slots=True)
class PriceRequest:
    """A charge, and what was used."""

    charge: Charge
    currency: str
    measured: Measured


@dataclass(frozen=True, slots=True)
class Priced:
    """A charge of a catalogue, with the meter that measures it."""

    charge: Charge
    currency: str
    meter: Meter | None


class CellSection(StrictModel):
    """The quantity of one combination of dimension values."""

    values: list[Text]
    quantity: UnloggedDecimal


class EventSection(StrictModel):
    """A usage event, as far as a meter needs it."""

    time: Instant = _EPOCH
    properties: dict[Name, Text | ExactDecimal] = Field(default_factory=dict)
    id: Text = ""


class PeriodSection(StrictModel):
    """What is billed; what happened before it is carried over by a meter that does."""

    start: Instant
    end: Instant


class UsedSection(StrictModel):
    """What was used."""

    quantity: UnloggedDecimal | None = None
    cells: list[CellSection] = Field(default_factory=list)
    transactions: list[UnloggedDecimal] = Field(default_factory=list)
    events: list[EventSection] = Field(default_factory=list)
    period: PeriodSection | None = None


class RequestSection(UsedSection):
    """The whole request."""

    currency: Name = "USD"
    charge: ChargeSection  # type: ignore[valid-type]
    meter: MeterSection | None = None  # type: ignore[valid-type]


@dataclass(slots=True)
class Given:
    """A request before it is checked: what was said by file and flags together."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: Document | None = None
    """Where it stands, if it was read from a file."""


def from_text(content: bytes, what: str = "") -> Given:
    """A request written as YAML or JSON; `what` names the field that it is, if it is not the whole one.

    Raises:
        BadRequest: it cannot be read.
    """
    try:
        document = load(content)
    except Unreadable as e:
        raise BadRequest([(e.line, Fault(e.fault.code, e.fault.detail, e.fault.field or what))]) from e
    if not isinstance(document.data, dict):
        raise BadRequest([(1, Fault("invalid_type", "named values (an object) are needed here", what))])
    return Given({what: document.data} if what else document.data, None if what else document)


def from_catalog(path: Path, plan: str, charge: str) -> Priced:
    """A charge of a catalogue file.

    Raises:
        BadCatalog: the file could not be applied.
        Rejected: it has no such plan or charge.
    """
    book = read_catalog(path.read_bytes()).price_book
    for each in book.plans if book else ():
        if each.key != plan:
            continue
        for priced in each.charges:
            if priced.key == charge:
                assert book is not None
                meter = next((meter for meter in book.meters if meter.key == priced.meter), None)
                return Priced(priced, each.currency, meter)
        known = ", ".join(priced.key for priced in each.charges)
        raise Rejected("unknown_charge", f"plan {plan!r} has no charge {charge!r}; it has: {known}", field="charge")
    known = ", ".join(each.key for each in book.plans) if book else "none"
    raise Rejected("unknown_plan", f"{path} has no plan {plan!r}; it has: {known}", field="plan")


def complete(given: Given, priced: Priced | None = None, events: Sequence[UsageEvent] = ()) -> PriceRequest:
    """The request that `given` makes, for the charge of a catalogue if one is given; `events` come from a file.

    Raises:
        BadRequest: naming every wrong field.
    """
    data = given.data if priced else _with_names(given.data)
    try:
        section: Any = (UsedSection if priced else RequestSection).model_validate(data)
    except ValidationError as e:
        raise BadRequest([(_line(given, each.field), each) for each in faults(e, data)]) from e
    try:
        if priced is None:
            charge, meter = value_of(Charge, section.charge), value_of(Meter, section.meter)
            exponent(section.currency, "currency")
            check(charge, "charge")
            priced = Priced(charge, section.currency, meter)
        return PriceRequest(priced.charge, priced.currency, _measured(section, priced, events))
    except Rejected as e:
        raise BadRequest([(_line(given, e.field), Fault(e.code, e.detail, e.field))]) from e


def _with_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """The request with names for what needs none here."""
    made = dict(data)
    charge, meter = made.get("charge"), made.get("meter")
    if isinstance(meter, dict):
        made["meter"] = {"key": "usage", "event_type": "usage", **meter}
    if isinstance(charge, dict):
        model = charge.get("model")
        is_flat = isinstance(model, dict) and model.get("type") == "flat"
        named = {"key": "charge", "name": "Charge", **({} if is_flat else {"meter": "usage"})}
        made["charge"] = {**named, **charge}
    return made


def _line(given: Given, path: str) -> int | None:
    return given.lines.line(path) if given.lines else None


def _measured(section: UsedSection, priced: Priced, events: Sequence[UsageEvent]) -> Measured:
    charge = priced.charge
    said = [
        name for name in ("quantity", "cells", "transactions", "events") if getattr(section, name) not in (None, [])
    ]
    said += ["events"] if events else []
    if len(said) > 1:
        raise Rejected("unexpected", f"{said[0]} says already what was used", field=said[1])
    if not said and not isinstance(charge.model, Flat):
        raise Rejected(
            "missing_field", "what was used? give a quantity, cells, transactions or events", field="quantity"
        )
    if charge.dimensions and said and said[0] in ("quantity", "transactions"):
        names = ", ".join(charge.dimensions)
        raise Rejected("missing_field", f"the price depends on {names}: give the quantity of each cell", field="cells")
    if section.cells:
        return _of_cells(section.cells, charge)
    if section.transactions:
        return _of_transactions(section.transactions)
    if section.events or events:
        given = events or [_event(each, n, priced) for n, each in enumerate(section.events)]
        return _of_events(given, priced, _period(section.period, given, priced))
    if section.period is not None:
        raise Rejected("unexpected", "only events lie in a period", field="period")
    quantity = section.quantity
    if quantity is None:
        return NOTHING
    return _of_transactions([quantity]) if isinstance(charge.model, Percentage) else Measured(quantity)


def _of_cells(cells: Sequence[CellSection], charge: Charge) -> Measured:
    total = Decimal(0)
    for index, each in enumerate(cells):
        if len(each.values) != len(charge.dimensions):
            names = ", ".join(charge.dimensions) or "none: this price has no dimensions"
            raise Rejected(
                "wrong_length", f"one value is needed per dimension: {names}", field=f"cells[{index}].values"
            )
        total = EXACT.add(total, each.quantity)
    if len({tuple(each.values) for each in cells}) < len(cells):
        raise Rejected("duplicate", "a combination of values stands there twice", field="cells")
    return Measured(total, tuple(sorted((tuple(each.values), each.quantity) for each in cells)))


def _of_transactions(values: Sequence[Decimal]) -> Measured:
    total = Decimal(0)
    for each in values:
        total = EXACT.add(total, each)
    return Measured(total, transactions=tuple(values), events=len(values))


def _event(section: EventSection, number: int, priced: Priced) -> UsageEvent:
    return UsageEvent(
        id=section.id or f"event {number + 1}",
        source="price",
        type=priced.meter.event_type if priced.meter else "",
        customer=_BUYER,
        time=section.time,
        properties={
            name: value if isinstance(value, str) else f"{value:f}" for name, value in section.properties.items()
        },
    )


def _period(section: PeriodSection | None, events: Sequence[UsageEvent], priced: Priced) -> Period:
    """The period given, or the span of the events."""
    if section is not None:
        if section.start >= section.end:
            raise Rejected("end_before_start", f"it must be after {section.start}", field="period.end")
        return Period(section.start, section.end)
    meter = priced.meter
    if meter is not None and (meter.carries_over or meter.aggregation is Aggregation.WEIGHTED_SUM):
        said = "a level is measured over a period: give its start and end"
        raise Rejected("missing_field", said, field="period")
    times = [each.time for each in events]
    return Period(min(times), max(times) + timedelta(microseconds=1))


def _of_events(events: Sequence[UsageEvent], priced: Priced, period: Period) -> Measured:
    """What the meter makes of `events`, all of one customer."""
    meter = priced.meter
    if meter is None:
        raise Rejected("missing_field", "events need a meter: which of their values counts?", field="meter")
    check_meter(meter, "meter")
    check_expression(meter, "meter")
    check_level(priced.charge, meter, "charge")
    buyers = sorted({each.customer for each in events})
    if len(buyers) > 1:
        said = f"a price is for one customer; these are of {', '.join(buyers[:5])}"
        raise Rejected("unexpected", said, field="events")
    times = [each.time for each in events]
    log = UsageLog(UsageBounds(oldest_days=SPAN_MAX["days"] * 100, ahead_minutes=0), {meter.key: meter})
    for each in events:
        log.append(each, 1, max(times))
    if log.refused:
        first = log.refused[0]
        raise Rejected(
            first.refused.code, f"event {first.id}: {first.refused.detail}", field=f"events.{first.refused.field}"
        )
    need = Need(meter, period, log.positions, held=is_held(priced.charge, meter))
    measured = log.measure(buyers[0], need, one_by_one=not need.held)
    return regrouped(measured, meter.dimensions, priced.charge.dimensions)
