"""Sums by day change no answer: whatever was counted, corrected, rolled up or only half of it, in any zone."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from billing.aggregation import window_start
from billing.errors import Rejected
from billing.metering import Aggregation, Meter, UsageEvent, read
from billing.period import Period
from billing.placing import Spread
from infra import migrate, postgres
from projections import generation, usage, usage_query, usage_rollup
from projections.usage_cover import cover
from projections.usage_query import Answer, Question
from schemas.codec import UsageMessage
from services.usage_aggregator import UsageStore
from services.usage_placing import Layout
from services.usage_rolling import roll
from tests.usage import test_backfilling, test_laws_of_backfilling
from tests.usage.conftest import Bench
from tests.usage.making import BYTES, CALLS, NOON, PEAK, TENANT, USERS, Log, amendment, batch, control, event, void

ZONES = ("UTC", "Europe/Zurich", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns")
CHANGES = ("2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-04-04T15:00:00Z")
METERS = (CALLS, BYTES, PEAK, USERS)
LAYOUT = Layout(2)
SPREAD = (Spread(effective_from=NOON - timedelta(days=300), partitions=2),)
STOP, GO_ON = threading.Event(), threading.Event()
STOP.set()


class Story:
    """Usage of two partitions as it comes in, and the events that are left by now."""

    def __init__(self, bench: Bench, chance: random.Random, around: datetime) -> None:
        self.bench, self.chance, self.around = bench, chance, around
        self.logs = [Log(0), Log(1)]
        self.left: dict[str, UsageEvent] = {}
        self.store = store(bench)
        for log in self.logs:
            self.apply(log, control(meters=METERS, spread=SPREAD))

    def apply(self, log: Log, content: UsageMessage) -> None:
        self.bench.apply([log.append(content, at=self.around + timedelta(days=3))], store=self.store)

    def log_of(self, which: UsageEvent) -> Log:
        return self.logs[LAYOUT.place(TENANT, SPREAD, which)]

    def tell(self) -> None:
        fresh = [self.some_event() for _ in range(self.chance.randint(1, 12))]
        match self.chance.choice(["events", "events", "events", "void", "amend"]) if self.left else "events":
            case "events":
                for partition, events in LAYOUT.divided(TENANT, SPREAD, fresh).items():
                    self.apply(self.logs[partition], batch(*events))
                self.left |= {each.id: each for each in fresh}
            case "void":
                gone = self.left.pop(self.chance.choice(sorted(self.left)))
                self.apply(self.log_of(gone), void(gone.id))
            case _:
                changed = replace(fresh[0], id=self.chance.choice(sorted(self.left)))
                self.left[changed.id] = changed
                self.apply(self.log_of(changed), amendment(changed))

    def some_event(self) -> UsageEvent:
        minutes = self.chance.choice([self.chance.randrange(-3_000, 3_000), self.chance.randrange(-90, 90)])
        return event(
            f"{self.chance.randrange(10**9)}",
            self.around + timedelta(minutes=minutes, microseconds=self.chance.choice([0, 0, -1, 1])),
            customer=self.chance.choice(["c1", "c1", "c2"]),
            region=self.chance.choice(["eu", "us", ""]),
            kind=self.chance.choice(["a", "b"]),
            user=self.chance.choice(["ann", "bob", ""]),
            bytes=self.chance.choice(["0", "1", "2.5", "3.333333333333", "12345"]),
        )

    def roll_some(self) -> None:
        """Up to some hour, or only a part of the way."""
        now = self.around + timedelta(minutes=self.chance.randrange(-3_500, 3_500))
        roll(self.bench.pool, self.chance.choice([STOP, GO_ON]), now)
        if self.chance.random() < 0.5:
            with postgres.transaction(self.bench.pool) as tx:
                generation.enter(tx, usage.SET, writes=True)
                usage_rollup.step(tx)

    def some_question(self, meter: Meter) -> Question:
        start = self.around + timedelta(minutes=self.chance.choice([-4000, -1_500, -645, -60, -90, 7]))
        minutes = self.chance.choice([60, 90, 1_440, 3_007, 8_000])
        dimensions = self.chance.sample(meter.dimensions, self.chance.randint(0, len(meter.dimensions)))
        return Question(
            meter=meter,
            period=Period(start, start + timedelta(minutes=minutes)),
            window=self.chance.choice([None, "hour", "day", "day", "week", "month", "minute"]),
            zone=self.chance.choice(ZONES),
            customer=self.chance.choice([None, None, "c1"]),
            by_customer=self.chance.random() < 0.4,
            by=tuple(dimensions),
            where={"region": "eu"} if "region" in meter.dimensions and self.chance.random() < 0.3 else {},
        )

    def check(self) -> None:
        for meter in METERS:
            question = self.some_question(meter)
            assert ask(self.bench, question) == by_the_book(question, self.left.values()), question


def store(bench: Bench) -> UsageStore:
    return UsageStore(bench.pool, LAYOUT, bench.refused.extend)


def ask(bench: Bench, question: Question) -> list[Answer]:
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        return usage_query.answers(tx, TENANT, question)


def by_the_book(question: Question, events: Iterable[UsageEvent]) -> list[Answer]:
    """The answer, from the events themselves."""
    meter, period = question.meter, question.period
    found: dict[tuple[datetime, str, tuple[str, ...]], list[Decimal | str]] = defaultdict(list)
    for each in events:
        reading = read(meter, each)
        value = reading.text if meter.aggregation is Aggregation.UNIQUE else reading.number
        cell = dict(zip(meter.dimensions, reading.dimensions, strict=True))
        if (
            value not in (None, "")
            and period.start <= each.time < period.end
            and question.customer in (None, each.customer)
            and all(cell[name] == wanted for name, wanted in question.where.items())
        ):
            assert value is not None
            start = period.start
            if question.window is not None:
                start = max(start, window_start(each.time, question.window, question.zone))
            customer = each.customer if question.by_customer else ""
            found[start, customer, tuple(cell[name] for name in question.by)].append(value)
    starts = usage_query._starts(question)
    windows = {start: usage_query._window(starts, place, period) for place, start in enumerate(starts)}
    return [
        Answer(windows[start], customer or None, cell, total(meter, values), len(values))
        for (start, customer, cell), values in sorted(found.items())
    ]


def total(meter: Meter, values: list[Decimal | str]) -> Decimal:
    numbers = [each for each in values if isinstance(each, Decimal)]
    match meter.aggregation:
        case Aggregation.SUM:
            return sum(numbers, Decimal(0))
        case Aggregation.MAX:
            return max(numbers)
        case Aggregation.UNIQUE:
            return Decimal(len(set(values)))
        case _:
            return Decimal(len(values))


def wrong(bench: Bench) -> Mapping[str, list[object]]:
    found = {table: bench.rows(statement) for table, statement in usage_rollup.WRONG.items() if table != "usage_rolled"}
    return {table: rows for table, rows in found.items() if rows}


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_is_what_the_events_say_however_far_the_sums_are(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    story = Story(bench, chance, datetime.fromisoformat(CHANGES[seed % 3]))
    for _ in range(40):
        story.tell()
        if chance.random() < 0.3:
            story.roll_some()
        if chance.random() < 0.4:
            story.check()
    assert wrong(bench) == {}
    roll(bench.pool, GO_ON, story.around + timedelta(days=30))
    assert wrong(bench) == {}
    for _ in range(10):
        story.check()


def test_answers_come_from_the_sums_once_they_are_there(bench: Bench) -> None:
    """Else the tests above would compare windows with windows."""
    story = Story(bench, random.Random(1), NOON)
    for _ in range(20):
        story.tell()
    roll(bench.pool, GO_ON, NOON + timedelta(days=30))
    with postgres.transaction(bench.pool) as tx:
        generation.enter(tx, usage.SET)
        tx.execute("UPDATE usage_window SET total = 1000, events = 1000")
    day = Period(NOON.replace(hour=0), NOON.replace(hour=0) + timedelta(days=1))
    for more in ({}, {"customer": "c1"}, {"by_customer": True, "by": ("region",)}):
        question = Question(meter=CALLS, period=day, window="hour", **more)  # type: ignore[arg-type]
        assert ask(bench, question) == by_the_book(question, story.left.values())


@pytest.mark.parametrize("table", ["usage_day", "usage_total"])
def test_a_wrong_sum_is_found(bench: Bench, table: str) -> None:
    story = Story(bench, random.Random(2), NOON)
    for _ in range(5):
        story.tell()
    roll(bench.pool, GO_ON, NOON + timedelta(days=30))
    assert wrong(bench) == {}
    with postgres.transaction(bench.pool) as tx:
        generation.enter(tx, usage.SET)
        tx.execute(f"UPDATE {table} SET events[array_length(events, 1)] = 77")
    assert list(wrong(bench)) == [table]


def test_sums_follow_while_workers_write(bench: Bench) -> None:
    """Each of two partitions begins and goes on at its own time; the hour that the sums reach moves all the while."""
    chance = random.Random(5)
    story = Story.__new__(Story)
    story.chance, story.around = chance, NOON
    logs = [Log(0), Log(1)]
    sent: list[UsageEvent] = []
    for log in logs:
        log.append(control(meters=METERS, spread=SPREAD), at=NOON)
    for _ in range(25):
        sent += (fresh := [story.some_event() for _ in range(40)])
        for partition, events in LAYOUT.divided(TENANT, SPREAD, fresh).items():
            logs[partition].append(batch(*events), at=NOON + timedelta(days=3))
    done = threading.Event()

    def work(log: Log) -> None:
        own = store(bench)
        for record in log.records:
            bench.apply([record], store=own)

    def follow() -> int:
        steps, at = 0, NOON - timedelta(days=3)
        while not done.is_set():
            at += timedelta(hours=1)
            steps += roll(bench.pool, GO_ON, at)
        return steps

    with ThreadPoolExecutor(3) as threads:
        following = threads.submit(follow)
        for each in [threads.submit(work, log) for log in logs]:
            each.result(120)
        done.set()
        assert following.result(60) > 1
    assert wrong(bench) == {}
    roll(bench.pool, GO_ON, NOON + timedelta(days=30))
    assert wrong(bench) == {}
    question = Question(meter=BYTES, period=Period(NOON - timedelta(days=5), NOON + timedelta(days=5)), window="day")
    assert ask(bench, question) == by_the_book(question, sent)


@pytest.mark.parametrize("seed", range(6))
def test_sums_follow_what_is_counted_again(bench: Bench, seed: int) -> None:
    """A backfill changes what counted at an offset of the past: before the sums were there, meanwhile, or after."""
    chance = random.Random(seed)
    log = test_laws_of_backfilling.some_log(chance)
    beside, own = test_backfilling.worker(bench, log), test_backfilling.store(bench, log)
    at = 0
    while at < len(log.records):
        size = chance.choice([1, 2, 5])
        bench.apply(log.records[at : at + size], store=own)
        at += size
        if chance.random() < 0.4:
            roll(bench.pool, chance.choice([STOP, GO_ON]), NOON + timedelta(minutes=chance.randrange(-6_000, 300)))
        if chance.random() < 0.3:
            beside.finish()
            assert wrong(bench) == {}
    beside.finish()
    assert wrong(bench) == {}
    roll(bench.pool, GO_ON, NOON + timedelta(days=30))
    assert wrong(bench) == {}


def test_a_generation_from_before_gets_its_sums(bench: Bench) -> None:
    log = Log()
    log.append(control(meters=(CALLS,)), at=NOON)
    log.append(batch(event("1"), event("2", NOON + timedelta(hours=1))), at=NOON)
    migration = Path(migrate.__file__).parent / "migrations" / "0070_usage_rollup.sql"
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        generation.enter(tx, usage.SET)
        made = tx.execute(_DEFINED).fetchall()
        tx.execute("DROP TABLE usage_day, usage_total, usage_rolled")
        tx.execute("DROP INDEX usage_value_by_day")
        for _ in range(2):
            tx.execute(migration.read_bytes())
        generation.enter(tx, usage.SET)
        assert tx.execute(_DEFINED).fetchall() == made
    bench.apply(log.records)
    roll(bench.pool, GO_ON, NOON + timedelta(days=1))
    assert bench.rows("SELECT sum(events[48]) FROM usage_day") == [(2,)]
    assert wrong(bench) == {}


_DEFINED = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, c.reloptions, c.relrowsecurity,
       (SELECT array_agg((polname, polcmd, polroles)::text ORDER BY polname) FROM pg_policy WHERE polrelid = c.oid),
       c.relacl::text,
       (SELECT array_agg(pg_get_constraintdef(oid) ORDER BY 1) FROM pg_constraint WHERE conrelid = c.oid)
  FROM pg_class c
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
 WHERE c.oid IN ('usage_day'::regclass, 'usage_total'::regclass, 'usage_rolled'::regclass,
                 'usage_value_by_day'::regclass)
 ORDER BY c.relname, a.attnum
"""


def test_what_would_read_too_much_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(bench, random.Random(3), NOON)
    for _ in range(20):
        story.tell()
    monkeypatch.setattr(usage_query, "EVENTS_MAX", 3)
    monkeypatch.setattr(usage_query, "HOURS_MAX", 3)
    days = Period(NOON - timedelta(days=2), NOON + timedelta(days=2))
    for until in (None, NOON + timedelta(days=30)):
        if until is not None:
            roll(bench.pool, GO_ON, until)
        for question in (
            Question(meter=CALLS, period=days, window="minute"),
            Question(meter=USERS, period=days, customer="c1"),
            Question(meter=PEAK, period=days),
        ):
            with pytest.raises(Rejected, match="allowed are 3") as refused:
                ask(bench, question)
            assert refused.value.code == "too_much_to_read"
        assert ask(bench, Question(meter=BYTES, period=Period(days.start.replace(minute=0), days.end), window="day"))


def test_what_takes_too_long_is_refused(bench: Bench) -> None:
    with postgres.connect(bench.owner) as holding, postgres.transaction(bench.pool) as tx:
        generation.enter(holding.cursor(), usage.SET)
        holding.execute("LOCK TABLE usage_series")
        generation.enter_all(tx)
        tx.execute("SET LOCAL statement_timeout = 100")
        with pytest.raises(Rejected, match="longer than a statement may"):
            usage_query.answers(tx, TENANT, Question(meter=CALLS, period=Period(NOON, NOON + timedelta(hours=1))))


@pytest.mark.parametrize("seed", range(50))
def test_each_instant_is_covered_once(seed: int) -> None:
    chance = random.Random(seed)
    ends = sorted(
        {NOON + timedelta(minutes=chance.randrange(5_000), seconds=chance.choice([0, 0, 1])) for _ in range(9)}
    )
    until, slots = NOON + timedelta(hours=chance.randrange(-5, 90)), chance.choice([48, 96])
    made = cover(ends[:-1], ends[-1], until, slots)
    spans = [(each, False) for each in made.hours + made.edges]
    for window, day, after, upto in made.slices:
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        start, end = (midnight + timedelta(days=1) / slots * each for each in (after, upto))
        assert ends[window - 1] <= start < end <= min(ends[window], until)
        spans.append(((start, end), True))
    assert all(start >= until and not (end - start) % timedelta(hours=1) for start, end in made.hours)
    at = ends[0]
    for (start, end), _ in sorted(spans):
        assert start == at
        at = end
    assert at == ends[-1]
