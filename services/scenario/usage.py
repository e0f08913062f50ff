"""The usage log of a scenario, in memory: one partition, whose events are judged and measured by `billing` alone.

It gives what the aggregator and its tables give: an event counts once per (source, id), is refused with the same words,
feeds the meters of its time of arrival, and is read below a cut. `scenario run --stack` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from billing.aggregation import Point
from billing.errors import Rejected
from billing.invoicing import PartitionPosition
from billing.measuring import Need, measured
from billing.metering import GONE, Aggregation, Measured, Meter, Reading, UsageEvent, check_event, readings
from billing.period import Period
from billing.tenant import UsageBounds
from services.meter_expressions import formula

PARTITION = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """An event that was not counted, and why."""

    id: str
    refused: Rejected


@dataclass(frozen=True, slots=True)
class _Value:
    """What one event, or several alike, contributed to a meter."""

    customer: str
    meter: str
    dimensions: dict[str, str]
    position: int
    point: Point
    count: int


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
    counted: list[tuple[str, datetime, int]] = field(default_factory=list)
    """Customer, time and number of counted events."""
    refused: list[Refused] = field(default_factory=list)
    _contents: dict[tuple[str, str], UsageEvent] = field(default_factory=dict)
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
        known = self._contents.setdefault((event.source, event.id), event)
        if known is not event:
            self._repeated(known, event)
            return
        self.counted.append((event.customer, event.time, count))
        for each in read:
            if each.number is not None or each.text is not None:
                self._values.append(self._value(event, each, position, count))

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
        for each in self._of(customer, None, need.period.end, 0, below):
            if each.meter == need.meter.key:
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
        """Whether usage of `period`, or with `earlier` also of the time before it, arrived between two cuts."""
        first, below = (sum(each.offset for each in cut if each.partition == PARTITION) for cut in (since, until))
        start = None if earlier else period.start
        return any(True for _ in self._of(customer, start, period.end, first, below))

    def _of(self, customer: str, start: datetime | None, end: datetime, first: int, below: int) -> Iterator[_Value]:
        for each in self._values:
            at = each.point.at
            if each.customer == customer and first <= each.position < below and at < end and (not start or at >= start):
                yield each
