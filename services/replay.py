"""Rebuilding a projection set from its log, beside the live one: to prove that they are equal, or to take its place.

Consumes the set's log from its beginning; produces a new generation. Owns that generation until it is swapped in or
dropped; the live one is only read, and its writers wait for milliseconds while both stand at equal positions. Repeats
safely because a generation that a killed replay left behind is dropped by the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from infra import kafka, postgres, telemetry
from infra.errors import Conflict
from infra.failpoints import failpoint
from infra.faust_app import Batch
from infra.kafka import KafkaConfig, Record
from infra.settings import Settings
from projections import billing_set, generation, usage, usage_backfill, usage_pruning
from services import projector, usage_backfilling
from services.usage_aggregator import UsageStore
from services.usage_placing import Layout

log = telemetry.logger("services.replay")

RECORDS_MAX = 500
BYTES_MAX = 8 * 1024 * 1024
"""Of one transaction of a rebuild."""

_EXAMPLES = 3

Progress = Callable[[str, int, int], None]
"""What is being done, how many records are applied, and how many there are."""


Write = Callable[[Batch], None]
"""Applies records of one partition, in order, and moves its checkpoint, in one transaction."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A projection set, as far as a rebuild needs to know it."""

    name: str
    topic: str
    writer: Callable[[postgres.Pool, int], Write]
    """What fills a generation: the code that fills the live one, which sends nothing to anybody."""
    compared: Mapping[str, str]
    """Table -> its rows by natural key, where that is not all its columns. Tables stand after FROM and JOIN only."""
    carry: Callable[[postgres.Cursor, str, str], None] = lambda *_: None
    """Takes over from the live schema into the new one what does not follow from the log."""
    finish: Callable[[postgres.Pool, int | None], None] = lambda *_: None
    """Does in a generation, None: the live one, what the log asks for and is done beside it."""
    waiting: Callable[[postgres.Cursor], bool] = lambda _: False
    """Whether the live generation, entered, has some of that left to do."""


def subjects(settings: Settings) -> tuple[Subject, ...]:
    """Billing comes first: every cut of an invoice that it holds then lies before the later barrier of usage."""

    def billing(pool: postgres.Pool, into: int) -> Write:
        return partial(projector.apply, pool, into=into)

    read = usage_backfilling.reader(KafkaConfig.of(settings))

    def measured(pool: postgres.Pool, into: int) -> Write:
        return UsageStore(pool, Layout(settings.usage_partitions), None, into=into, read=read).apply

    def backfilled(pool: postgres.Pool, into: int | None) -> None:
        usage_backfilling.finish(pool, read, into)

    def waiting(tx: postgres.Cursor) -> bool:
        return bool(usage_backfill.pending(tx))

    return (
        Subject(billing_set.NAME, billing_set.TOPIC, billing, {}),
        Subject(usage.SET, usage.TOPIC, measured, usage.COMPARED, usage_pruning.carry, backfilled, waiting),
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """How one table of two generations at equal positions differs."""

    table: str
    rows: int
    """In the live generation."""
    missing: int
    """Rows that follow from the log but are not in the live table."""
    unexplained: int
    """Rows of the live table that do not follow from the log."""
    examples: tuple[str, ...]
    """Some of both, for people."""

    @property
    def differing(self) -> int:
        """Rows that one generation has and the other has not."""
        return self.missing + self.unexplained


class Scratch:
    """A generation that is being built from the log."""

    def __init__(self, settings: Settings, pool: postgres.Pool, subject: Subject, progress: Progress) -> None:
        self.subject = subject
        self._settings = settings
        self._pool = pool
        self._config = KafkaConfig.of(settings)
        self._progress = progress
        self._topic = subject.topic
        with _owner(settings) as tx:
            for leftover in generation.existing(tx, subject.name):
                if leftover > generation.current(tx, subject.name):
                    generation.drop(tx, subject.name, leftover)
            self.number = generation.reserve(tx, subject.name)
            generation.create(tx, subject.name, self.number)
        self._write = subject.writer(pool, self.number)
        self._at: dict[int, int] = {}
        self._applied = 0

    @property
    def schema(self) -> str:
        """The schema that it fills."""
        return generation.schema(self.subject.name, self.number)

    def catch_up(self, ends: Mapping[int, int]) -> None:
        """Apply the log up to `ends`, the position of the live generation."""
        starts = {partition: self._at.get(partition, 0) for partition in ends}
        total = self._applied + sum(max(end - starts[each], 0) for each, end in ends.items())
        for records in kafka.scan(self._config, self._topic, starts, ends):
            for partition, batch in _batches(records):
                self._write(Batch(batch, self._at.get(partition, 0)))
                self._at[partition] = batch[-1].offset + 1
                failpoint("replay.after_batch")
                self._applied += len(batch)
                self._progress(f"replaying {self._topic}", self._applied, total)
        for partition, end in ends.items():
            if self._at.get(partition, 0) < end:  # markers of transactions stand before the end
                with postgres.transaction(self._pool) as tx:
                    at = self._at.get(partition, 0)
                    generation.advance(tx, self.subject.name, self.number, self._topic, partition, at, end)
                self._at[partition] = end

    @contextmanager
    def level(self) -> Iterator[postgres.Cursor]:
        """A transaction in which the live generation cannot move, and this one stands where it stands."""
        while True:
            with postgres.transaction(self._pool) as tx:
                # Without the lock first, so that writers wait only for what came in meanwhile.
                live = generation.checkpoints(tx, self.subject.name, self._live(tx), self._topic)
            self.catch_up(live)
            for number in (None, self.number):
                self.subject.finish(self._pool, number)
            # Fresh tables have no statistics yet: reads of them would be planned as if they were empty.
            with _owner(self._settings) as tx:
                generation.analyze(tx, self.subject.name, self.number)
            with postgres.transaction(self._pool) as tx:
                number = generation.lock(tx, self.subject.name)
                generation.enter(tx, self.subject.name, number)
                if self.subject.waiting(tx):  # asked for since: it may take long, and nobody should wait for it
                    continue
                self.catch_up(generation.checkpoints(tx, self.subject.name, number, self._topic))
                self.subject.finish(self._pool, self.number)
                self.subject.carry(tx, generation.schema(self.subject.name, number), self.schema)
                yield tx
                return

    def _live(self, tx: postgres.Cursor) -> int:
        return generation.current(tx, self.subject.name)

    @contextmanager
    def snapshot(self) -> Iterator[tuple[postgres.Cursor, int, Mapping[int, int]]]:
        """A transaction that sees both generations at equal positions, while the live one goes on.

        Gives its cursor, the number of the live generation, and the positions.
        """
        with ExitStack() as reading:
            with self.level() as held:
                live = self._live(held)
                barrier = generation.checkpoints(held, self.subject.name, live, self._topic)
                tx = reading.enter_context(postgres.transaction(self._pool))
                tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                tx.execute("SET LOCAL statement_timeout = 0")
                tx.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                tx.execute("SELECT 1 FROM app.generation").fetchall()  # the snapshot is taken here, under the lock
            yield tx, live, barrier

    def swap(self) -> int:
        """Make this generation the live one; returns the number of the one before, which is kept."""
        failpoint("replay.before_swap")
        with self.level() as tx:
            before = generation.swap(tx, self.subject.name, self.number)
        failpoint("replay.after_swap")
        return before

    def drop(self) -> None:
        """Remove it."""
        with _owner(self._settings) as tx:
            generation.drop(tx, self.subject.name, self.number)


def compare(tx: postgres.Cursor, scratch: Scratch, live: int, progress: Progress) -> list[Compared]:
    """Each table of the live generation against the rebuilt one, row by row, both ways."""
    subject = scratch.subject
    live_schema = generation.schema(subject.name, live)
    columns = _columns(tx, scratch.schema)
    if columns != _columns(tx, live_schema):
        raise Conflict(
            f"{live_schema} was made by another version of the program and has other columns: replace it with"
            f" `tallybook replay rebuild --set {subject.name} --yes`"
        )
    tables = sorted({table for table, *_ in columns})
    made = []
    for done, table in enumerate(tables):
        progress(f"comparing {table}", done, len(tables))
        rows = subject.compared.get(table, f"SELECT * FROM {table}")
        made.append(_compare(tx, table, rows, live_schema, scratch.schema))
    return made


def _compare(tx: postgres.Cursor, table: str, rows: str, live: str, rebuilt: str) -> Compared:
    live_rows, rebuilt_rows = _within(rows, live), _within(rows, rebuilt)
    counted = tx.execute(f"SELECT count(*) FROM ({live_rows}) AS l").fetchone()
    assert counted is not None
    differences = []
    examples: list[str] = []
    for kind, one, other in (("missing", rebuilt_rows, live_rows), ("unexplained", live_rows, rebuilt_rows)):
        found = tx.execute(
            f"""
            SELECT (left(d::text, 400)), count(*) OVER ()
              FROM (({one}) EXCEPT ALL ({other})) AS d
             LIMIT {_EXAMPLES}
            """
        ).fetchall()
        differences.append(found[0][1] if found else 0)
        examples += [f"{kind}: {text}" for text, _ in found]
    return Compared(table, counted[0], differences[0], differences[1], tuple(examples))


def _within(rows: str, schema: str) -> str:
    return re.sub(r"\b(FROM|JOIN)\s+([a-z_]+)", rf"\1 {schema}.\2", rows)


def _columns(tx: postgres.Cursor, schema: str) -> list[tuple[str, str, str]]:
    """(table, column, type) of a generation, in order."""
    return tx.execute(
        """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
          FROM pg_class c
          JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE n.nspname = %s
           AND c.relkind IN ('r', 'p')
           AND NOT c.relispartition
         ORDER BY c.relname, a.attnum
        """,
        (schema,),
    ).fetchall()


def _batches(records: Iterable[Record]) -> Iterator[tuple[int, list[Record]]]:
    """`records` by partition, in pieces that fit one transaction."""
    by_partition: dict[int, list[Record]] = {}
    for record in records:
        by_partition.setdefault(record.partition, []).append(record)
    for partition, queue in by_partition.items():
        piece: list[Record] = []
        size = 0
        for record in queue:
            piece.append(record)
            size += len(record.value or b"")
            if len(piece) >= RECORDS_MAX or size >= BYTES_MAX:
                yield partition, piece
                piece, size = [], 0
        if piece:
            yield partition, piece


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Be the only replay on this database.

    Raises:
        Conflict: another one runs.
    """
    with postgres.connect(postgres.worker_url(settings), autocommit=True) as connection, postgres.translated():
        taken = connection.execute("SELECT pg_try_advisory_lock(hashtextextended('tallybook replay', 0))").fetchone()
        if taken is None or not taken[0]:
            raise Conflict("another replay runs on this database; two would drop each other's work")
        yield


@contextmanager
def _owner(settings: Settings) -> Iterator[postgres.Cursor]:
    url = postgres.owner_url(settings)
    with postgres.translated(), postgres.connect(url, timeout=timedelta(minutes=1)) as connection:
        yield connection.cursor()
