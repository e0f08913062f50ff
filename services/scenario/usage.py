"""The usage log of a scenario, in memory: one partition, whose events are judged and measured by `billing` alone.

It gives what the aggregator and its tables give: an event counts once per (source, id), is refused with the same words,
feeds the meters of its time of arrival, and is read below a cut. `scenario run --stack` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from billing import aggregation
from billing.aggregation import Method, Point
from billing.errors import Rejected
from billing.invoicing import Need, PartitionPosition
from billing.metering import NOTHING, Aggregation, Measured, Meter, Reading, UsageEvent, check_event, readings
from billing.period import Period
from billing.tenant import UsageBounds

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
            read = readings(event, list(self.meters.values()))
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
        point = Point(
            at=event.time,
            value=reading.number if reading.number is not None else Decimal(1),
            thing=reading.text or "",
            key=f"{position:012}",
        )
        return _Value(event.customer, reading.meter, dimensions, position, point, count)

    def measure(self, customer: str, need: Need, one_by_one: bool) -> Measured:
        """What a meter measured in a period below a cut; `one_by_one` adds the value of each event."""
        below = sum(each.offset for each in need.positions if each.partition == PARTITION)
        found = [each for each in self._of(customer, need.period, 0, below) if each.meter == need.meter.key]
        if not found:
            return NOTHING
        method = Method(need.meter.aggregation.value)
        cells: dict[tuple[str, ...], list[Point]] = {}
        points: list[Point] = []
        for each in found:
            alike = [each.point] * each.count
            points += alike
            if need.meter.dimensions:
                cell = tuple(each.dimensions.get(name, "") for name in need.meter.dimensions)
                cells.setdefault(cell, []).extend(alike)
        ordered = sorted(points, key=lambda point: (point.at, point.key))
        summed = one_by_one and need.meter.aggregation is Aggregation.SUM
        return Measured(
            total=_measured(method, points, need.period),
            cells=tuple((cell, _measured(method, inside, need.period)) for cell, inside in sorted(cells.items())),
            transactions=tuple(point.value for point in ordered) if summed else (),
            events=len(points),
        )

    def has_late(
        self,
        customer: str,
        period: Period,
        since: Sequence[PartitionPosition],
        until: Sequence[PartitionPosition],
    ) -> bool:
        """Whether usage of `period` arrived between two cuts."""
        first, below = (sum(each.offset for each in cut if each.partition == PARTITION) for cut in (since, until))
        return bool(self._of(customer, period, first, below))

    def _of(self, customer: str, period: Period, first: int, below: int) -> list[_Value]:
        return [
            each
            for each in self._values
            if each.customer == customer and first <= each.position < below and each.point.at in period
        ]


def _measured(method: Method, points: Sequence[Point], period: Period) -> Decimal:
    quantity = aggregation.measure(method, points, period)
    assert isinstance(quantity, Decimal)
    return quantity
