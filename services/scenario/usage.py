"""The usage log of a scenario, in memory: one partition, whose events are judged and measured by `billing` alone.

It gives what the aggregator and its tables give: an event counts once per (source, id), is refused with the same words,
feeds the meters of its time of arrival, and is read below a cut. `scenario run --stack` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from billing.aggregation import Point
from billing.errors import Rejected
from billing.invoicing import PartitionPosition
from billing.measuring import Need, measured
from billing.metering import (
    GONE,
    Aggregation,
    Measured,
    Meter,
    Reading,
    UsageAmended,
    UsageEvent,
    UsageVoided,
    check_event,
    readings,
)
from billing.period import Period
from billing.tenant import UsageBounds
from services.meter_expressions import formula

PARTITION = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """An event that was not counted, and why."""

    id: str
    refused: Rejected


@dataclass(slots=True)
class _Value:
    """What one event, or several alike, contributed to a meter."""

    customer: str
    meter: str
    dimensions: dict[str, str]
    position: int
    point: Point
    count: int
    voided: int | None = None
    """From this position on it does not count."""

    def counts(self, below: int) -> bool:
        """Whether a cut at `below` has it."""
        return self.position < below and (self.voided is None or self.voided >= below)


@dataclass(slots=True)
class _Known:
    """What is known of an identity."""

    first: UsageEvent
    """What copies are told by."""
    stands: UsageEvent
    """As it was amended last."""
    count: int
    """How many events alike; each of several has an id of its own, which nobody knows."""
    values: list[_Value] = field(default_factory=list)
    """What it contributes."""
    voided: bool = False


@dataclass(slots=True)
class UsageLog:
    """What arrived, in order."""

    bounds: UsageBounds
    meters: dict[str, Meter] = field(default_factory=dict)
    """By key. One that a newer price book leaves out is measured on, for subscriptions on older books."""
    end: int = 0
    """Position of the next event."""
    received: int = 0
    duplicates: int = 0
    refused: list[Refused] = field(default_factory=list)
    voided: int = 0
    amended: int = 0
    uncorrected: list[Refused] = field(default_factory=list)
    """Voids and amendments that were refused, by the id of the event."""
    _known: dict[tuple[str, str], _Known] = field(default_factory=dict)
    _values: list[_Value] = field(default_factory=list)

    @property
    def positions(self) -> tuple[PartitionPosition, ...]:
        """The end of the log, as a cut has it."""
        return (PartitionPosition(partition=PARTITION, offset=self.end),)

    def append(self, event: UsageEvent, count: int, present: datetime) -> None:
        """`event` arrives; with a `count` above one, so many alike that differ only in their ids, which are new."""
        position = self.end
        self.end += 1
        self.received += count
        try:
            check_event(event, self.bounds, present)
            read = readings(event, list(self.meters.values()), formula)
        except Rejected as e:
            self.refused += [Refused(event.id, e)] * count
            return
        known = self._known.setdefault((event.source, event.id), _Known(event, event, count))
        if known.first is not event:
            self._repeated(known.first, event)
            return
        self._count(known, read, position)

    def correct(self, correction: UsageVoided | UsageAmended, present: datetime) -> None:
        """`correction` arrives; it finds what those before it left."""
        position = self.end
        self.end += 1
        amended = correction.event if isinstance(correction, UsageAmended) else None
        told = amended or correction
        assert isinstance(told, UsageEvent | UsageVoided)
        try:
            read = self._amended(amended, present) if amended else []
            known = self._standing(told.source, told.id, present)
            if (known.voided and amended is None) or (not known.voided and known.stands == amended):
                return
            if known.voided:
                said = "the event is voided; send another one with an id of its own"
                raise Rejected("event_voided", said, field="id")
        except Rejected as e:
            self.uncorrected.append(Refused(told.id, e))
            return
        for each in known.values:
            each.voided = position
        known.values = []
        if amended is None:
            known.voided = True
            self.voided += 1
        else:
            known.stands = amended
            self._count(known, read, position)
            self.amended += 1

    def time_of(self, source: str, id: str) -> datetime | None:
        """When the event happened, by what is known now."""
        known = self._known.get((source, id))
        return known.stands.time if known else None

    @property
    def counted(self) -> list[tuple[str, datetime, int]]:
        """Customer, time and number of the events that count."""
        known = [each for each in self._known.values() if not each.voided]
        return [(each.stands.customer, each.stands.time, each.count) for each in known]

    def _amended(self, event: UsageEvent, present: datetime) -> list[Reading]:
        check_event(event, self.bounds, present)
        return readings(event, list(self.meters.values()), formula)

    def _standing(self, source: str, id: str, present: datetime) -> _Known:
        known = self._known.get((source, id))
        oldest = present - timedelta(days=self.bounds.oldest_days)
        if known is None or known.count > 1 or known.stands.time < oldest:
            said = f"no event ({source}, {id}) of {oldest} or later was counted before this record"
            raise Rejected("unknown_event", said, field="id")
        return known

    def _count(self, known: _Known, read: Sequence[Reading], position: int) -> None:
        for each in read:
            if each.number is not None or each.text is not None:
                known.values.append(self._value(known.stands, each, position, known.count))
        self._values += known.values

    def _repeated(self, known: UsageEvent, event: UsageEvent) -> None:
        if known == event:
            self.duplicates += 1
            return
        detail = "an event with this source and id but other content was counted before"
        self.refused.append(Refused(event.id, Rejected("id_conflict", detail, field="id")))

    def _value(self, event: UsageEvent, reading: Reading, position: int, count: int) -> _Value:
        names = self.meters[reading.meter].dimensions
        dimensions = dict(zip(names, reading.dimensions, strict=True))
        thing = reading.text is not None
        point = Point(
            at=event.time,
            value=Decimal(1) if thing or reading.number is None else reading.number,
            thing=reading.text or "",
            removes=thing and reading.number == GONE,
            key=f"{position:012}",
        )
        return _Value(event.customer, reading.meter, dimensions, position, point, count)

    def measure(self, customer: str, need: Need, one_by_one: bool) -> Measured:
        """What a meter measured in a period below a cut; `one_by_one` adds the value of each event."""
        below = sum(each.offset for each in need.positions if each.partition == PARTITION)
        points: list[Point] = []
        for each in self._of(customer, None, need.period.end):
            if each.meter == need.meter.key and each.counts(below):
                cell = tuple(each.dimensions.get(name, "") for name in need.meter.dimensions)
                points += [replace(each.point, dimensions=cell)] * each.count
        summed = one_by_one and need.meter.aggregation is Aggregation.SUM
        return measured(need, points, one_by_one=summed)

    def has_late(
        self,
        customer: str,
        period: Period,
        since: Sequence[PartitionPosition],
        until: Sequence[PartitionPosition],
        *,
        earlier: bool = False,
    ) -> bool:
        """Whether usage of `period`, or with `earlier` also of the time before it, differs between two cuts."""
        first, below = (sum(each.offset for each in cut if each.partition == PARTITION) for cut in (since, until))
        start = None if earlier else period.start
        return any(each.counts(first) != each.counts(below) for each in self._of(customer, start, period.end))

    def _of(self, customer: str, start: datetime | None, end: datetime) -> Iterator[_Value]:
        for each in self._values:
            at = each.point.at
            if each.customer == customer and at < end and (not start or at >= start):
                yield each
