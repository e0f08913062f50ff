"""Judging a record of usage in one pass over its bytes: the quick way for events in order.

Events as the SDK writes them go from Avro to the rows of the COPY without an object for each. Nothing is refused here
and no rule is decided: an event that is not plainly in order is left, and a record that is not plainly written is None,
for `usage_intake` to decode and judge. What is scanned comes to the same rows either way.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from billing.metering import UsageControl
from projections.usage_rows import Place, Series, counted, record_rows, value
from services.usage_identity import content_hash, identities, identity_bytes, mask_of
from services.usage_measuring import Measuring, is_name
from services.usage_placing import Layout
from services.usage_readers import Pending, Reader, Room, gathered, settled
from services.usage_series import KnownSeries


class Scanned(NamedTuple):
    """The events of a record that are in order. The first lists run in parallel."""

    place: Place
    indexes: list[int]
    """Where in the record, ascending."""
    identities: list[bytes]
    """Each once."""
    contents: list[bytes]
    times_us: list[int]
    firsts: list[bytes | Pending]
    """What each adds to the first meter that it feeds, or that it feeds none."""
    further: list[tuple[int, bytes | Pending]]
    """What others of their meters are added, by where the event stands in the lists."""
    is_pending: bool
    """Whether one of them is of a series whose integer is not known yet."""
    left: list[int]
    """The places of the other events."""

    def series(self) -> set[Series]:
        """Those whose integers are not known yet."""
        if not self.is_pending:
            return set()
        added = [*self.firsts, *[each for _, each in self.further]]
        return {each.series for each in added if isinstance(each, Pending)}

    def rows(self, ids: Mapping[Series, int]) -> bytes:
        """For the COPY (`projections.usage_rows`). `ids`: of `series`."""
        firsts: Any = [settled(each, ids) for each in self.firsts] if self.is_pending else self.firsts
        further = [(at, settled(each, ids)) for at, each in self.further]
        return record_rows(self.place, self.indexes, self.identities, self.contents, self.times_us, firsts, further)


@dataclass(slots=True)
class _Columns:
    """What was read of a record's events, in parallel."""

    indexes: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    heads: list[_Head] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    """Type, customer, time and properties in Avro, in one block, by name."""
    properties: list[bytes] = field(default_factory=list)
    """As they stand, with the end of the block."""
    times_us: list[int] = field(default_factory=list)
    firsts: list[bytes | Pending] = field(default_factory=list)
    """What each adds to the first meter that it feeds, or that it feeds none."""
    further: dict[int, list[bytes | Pending]] = field(default_factory=dict)
    """By index, what it adds to others."""

    def without(self, dropped: set[int]) -> _Columns:
        """The events whose positions here are not `dropped`."""
        kept = [at for at in range(len(self.indexes)) if at not in dropped]
        return _Columns(
            [self.indexes[at] for at in kept],
            [self.ids[at] for at in kept],
            [self.heads[at] for at in kept],
            [self.contents[at] for at in kept],
            [self.properties[at] for at in kept],
            [self.times_us[at] for at in kept],
            [self.firsts[at] for at in kept],
            self.further,
        )


class Scanners:
    """What reads records into one generation, with the series that are known there."""

    def __init__(self, generation: int, layout: Layout) -> None:
        self.generation = generation
        self.series = KnownSeries()
        self._layout = layout
        self._scanners: WeakKeyDictionary[Measuring, Scanner] = WeakKeyDictionary()
        self._room = Room()

    def of(self, measuring: Measuring) -> Scanner:
        """What reads by `measuring`."""
        if self._room.left < 0:
            self._scanners, self._room = WeakKeyDictionary(), Room()
        scanner = self._scanners.get(measuring)
        if scanner is None:
            scanner = self._scanners[measuring] = Scanner(measuring.control, self._layout, self.series, self._room)
        return scanner


class Scanner:
    """Reads records as one control record says. Threads may share it."""

    def __init__(self, control: UsageControl, layout: Layout, known: KnownSeries, room: Room) -> None:
        # Not the `Measuring`, which could never be forgotten then: it is the weak key under which this is found.
        self._control = control
        self._layout = layout
        self._room = room
        self._readers: dict[str, list[Reader]] = {}
        for meter in control.meters:
            self._readers.setdefault(meter.event_type, []).append(Reader(control.tenant, meter, known, room))
        self._heads: dict[bytes, _Head | None] = {}
        self._alone: dict[bytes, bytes] = {}
        self._orders: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}

    def scan(
        self,
        body: bytes,
        at: int,
        place: Place,
        partition: int,
        accepted_us: tuple[int, int],
        claimed: Mapping[bytes, Any],
    ) -> Scanned | None:
        """The batch whose Avro is in `body` from `at` on, or None.

        Events outside the times that are accepted are left, and those with an identity of `claimed`, which came before.
        """
        try:
            found, count = self._read(body, at, place.tenant.encode())
            found = self._in_order(found, accepted_us, partition)
            named = identities(found.ids, [each.mask for each in found.heads])
            if named is None:
                named = [_identity(head.source, id) for head, id in zip(found.heads, found.ids, strict=True)]
        except (_Unusual, IndexError, TypeError, struct.error, UnicodeDecodeError):
            return None
        if len(set(named)) < len(named):
            return None
        if not claimed.keys().isdisjoint(named):
            found = found.without({at for at, each in enumerate(named) if each in claimed})
            named = [each for each in named if each not in claimed]
        contents = [content_hash(each) for each in found.contents]
        further = [(at, more) for at, index in enumerate(found.indexes) for more in found.further.get(index, ())]
        left = sorted(set(range(count)).difference(found.indexes)) if len(named) < count else []
        is_pending = Pending in set(map(type, found.firsts)) or any(isinstance(each, Pending) for _, each in further)
        return Scanned(place, found.indexes, named, contents, found.times_us, found.firsts, further, is_pending, left)

    def _read(self, body: bytes, at: int, tenant: bytes) -> tuple[_Columns, int]:
        """The events that are plainly in order, and how many there are. The loop that all usage passes."""
        count, at = _opening(body, at, tenant)
        found = _Columns()
        heads, orders, alone = self._heads, self._orders, self._alone
        for index in range(count):
            source = at + 1 + _LENGTH[body[at]]
            kind = source + 1 + _LENGTH[body[source]]
            customer = kind + 1 + _LENGTH[body[kind]]
            time = customer + 1 + _LENGTH[body[customer]]
            low, middle, high = _TIME(body, time)
            end = properties = time + _TIME_BYTES
            pairs = _LENGTH[body[end]]
            end += 1
            values: dict[bytes, bytes] = {}
            for _ in range(pairs):
                text = end + 1 + _LENGTH[body[end]]
                after = text + 1 + _LENGTH[body[text]]
                values[body[end:text]] = body[text + 1 : after]
                end = after
            if pairs:
                if body[end]:
                    raise _Unusual  # another block
                end += 1
            id, told, of_customer = body[at + 1 : source], body[source:customer], body[customer:time]
            at = end
            head = heads.get(told, _UNSEEN)
            if head is _UNSEEN:
                head = self._head(told)
            names = tuple(values)
            order = orders.get(names)
            if order is None:
                order = self._order(names)
            if head is None or len(names) < pairs:
                continue
            first = head.readers[0].read(of_customer, values)
            if len(head.readers) > 1:
                first, further = gathered(first, head.readers[1:], of_customer, values)
                if further:
                    found.further[index] = further
            if first == b"":
                first = alone.get(of_customer) or self._without_meter(of_customer)
            if first is None:
                continue
            found.indexes.append(index)
            found.ids.append(id)
            found.heads.append(head)
            found.firsts.append(first)
            found.times_us.append(_LOW[low] + _MIDDLE[middle] + _HIGH[high])
            found.properties.append(body[properties:end])
            found.contents.append(body[kind : properties + 1] + _ordered(order, values) if order else body[kind:end])
        if body[at:] != b"\0":
            raise _Unusual
        return found, count

    def _in_order(self, found: _Columns, accepted_us: tuple[int, int], partition: int) -> _Columns:
        """Those of an accepted time, in the right partition, whose texts hold no NUL."""
        texts = b"".join(found.properties)
        texts.decode()
        dropped: set[int] = set()
        if texts.count(0) != len(found.properties):  # besides the end of each block
            dropped.update(at for at, each in enumerate(found.properties) if each.count(0) != 1)
        oldest, newest = accepted_us
        if found.times_us and not oldest <= min(found.times_us) <= max(found.times_us) <= newest:
            dropped.update(at for at, each in enumerate(found.times_us) if not oldest <= each <= newest)
        if self._control.spread:
            for at, (head, id, time_us) in enumerate(zip(found.heads, found.ids, found.times_us, strict=True)):
                if self._layout.place_at(self._control, time_us, head.source, id.decode()) != partition:
                    dropped.add(at)
        return found.without(dropped) if dropped else found

    def _head(self, told: bytes) -> _Head | None:
        """What a source and a type, as they stand in Avro, come to; None: events that have them are left."""
        self._room.left -= 1
        length = 1 + _LENGTH[told[0]]
        source, kind = told[1:length].decode(), told[length + 1 :].decode()
        readers = self._readers.get(kind, [])
        is_plain = is_name(source) and is_name(kind) and readers and all(each.is_plain for each in readers)
        made = self._heads[told] = _Head(source, mask_of(source), readers) if is_plain else None
        return made

    def _order(self, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """`names`, each after its length, in the order of their bytes; empty if they are."""
        self._room.left -= 1
        order = tuple(sorted(names, key=lambda each: each[1:]))
        made = self._orders[names] = () if order == names else order
        return made

    def _without_meter(self, customer: bytes) -> bytes | None:
        """What an event adds that feeds no meter."""
        name = customer[1:].decode()
        if not is_name(name):
            return None
        self._room.left -= 1
        made = self._alone[customer] = counted(None, name) + value(None, None)
        return made


class _Head(NamedTuple):
    """What a source and a type of event come to."""

    source: str
    mask: bytes
    readers: list[Reader]
    """One or more."""


_UNSEEN: Final = _Head("", b"", [])


class _Unusual(Exception):
    """The record is for `usage_intake`."""


def _identity(source: str, id: bytes) -> bytes:
    name = id.decode()
    if not is_name(name):
        raise _Unusual
    return identity_bytes(source, name)


def _opening(body: bytes, at: int, tenant: bytes) -> tuple[int, int]:
    """How many events there are, and where the first begins."""
    start = at + 1 + _LENGTH[body[at]]
    count = shift = 0
    while True:
        byte = body[start]
        count |= (byte & 0x7F) << shift
        shift, start = shift + 7, start + 1
        if byte < 0x80:
            break
    if body[at + 1 : at + 1 + len(tenant)] != tenant or _LENGTH[body[at]] != len(tenant) or count & 1 or not count:
        raise _Unusual
    return count >> 1, start


def _ordered(names: tuple[bytes, ...], values: dict[bytes, bytes]) -> bytes:
    """Pairs of a map by `names`, with the end of the block."""
    return b"".join([part for name in names for part in (name, _ONE_BYTE[2 * len(values[name])], values[name])]) + b"\0"


_ONE_BYTE = [bytes((each,)) for each in range(256)]

# A length below 64 is one byte; what is none leads to a TypeError, and the record to `usage_intake`.
_LENGTH: Any = tuple(byte >> 1 if byte < 0x80 and byte % 2 == 0 else None for byte in range(256))

# Times from 1978 to 3111 are eight bytes of seven bits, the low ones first, the sign (0) the lowest: read as two, two
# and four bytes. All but the last have their high bit set; and the last is not 0, or the number is longer than need be.
_TIME = struct.Struct("<HHI").unpack_from
_TIME_BYTES = 8


def _bits(two: int) -> int | None:
    return (two & 0x7F) | (two >> 8 & 0x7F) << 7 if two & 0x8080 == 0x8080 else None


_LOW: Any = tuple(None if (bits := _bits(two)) is None or bits & 1 else bits >> 1 for two in range(65_536))
_MIDDLE: Any = tuple(None if (bits := _bits(two)) is None else bits << 13 for two in range(65_536))


HIGHS_MAX = 10_000  # each is two minutes


class _High(dict[int, int]):
    def __missing__(self, four: int) -> int:
        low, last = _bits(four & 0xFFFF), four >> 24
        if low is None or not four & 0x800000 or not 0 < last < 0x80:
            raise _Unusual
        if len(self) > HIGHS_MAX:
            self.clear()
        made = self[four] = low << 27 | (four >> 16 & 0x7F) << 41 | last << 48
        return made


_HIGH = _High()
