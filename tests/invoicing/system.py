"""The whole path on real servers: every process, one of which is killed at a failpoint and comes back."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx

from billing.envelope import EventEnvelope, Outcome
from billing.ids import CustomerId, TenantId
from billing.invoice import InvoiceFinalized
from billing.metering import UsageBatch, UsageControl, UsageEvent
from billing.payment import PaymentSucceeded
from billing.tenant import AdvanceClock, UsageBounds
from infra import postgres
from infra.errors import Transient
from infra.kafka import KafkaConfig, Producer, headers, partition_for, scan
from infra.local.ports import Ports
from infra.settings import Settings
from projections import generation
from schemas.codec import decode_event, encode_usage, fingerprint_of
from services.commands import CommandClient
from tests.invoicing import airline
from tests.stack import Stack
from tests.waiting import eventually

PROCESSES = (
    "sandbox",
    "command-handler",
    "projector",
    "usage-aggregator",
    "scheduler",
    "invoicing",
    "outbox",
    "payments",
)
LEASE = (
    "3s"  # what a dead worker held comes back soon; one that is only slow works beside its heir, which must not matter
)
FEE, UNIT = 50_000, 1_200  # cents a month, cents a departure


class System:
    """All processes on topics and a database of their own."""

    def __init__(self, stack: Stack) -> None:
        port = Ports(stack.data / "sandbox").get("sandbox")
        self.stack = stack
        self.settings: Settings = stack.fresh(sandbox=f"http://127.0.0.1:{port}", sandbox_port=port)
        self.config = KafkaConfig.of(self.settings)
        self.client = CommandClient(self.settings)
        self.producer = Producer(self.config)
        self._pool = postgres.worker_pool(self.settings)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._asked = 0
        for name in PROCESSES:
            self.start(name)

    def start(self, name: str, **env: str) -> subprocess.Popen[bytes]:
        # A member of a group with a fixed name takes its partitions back at once when it comes again.
        own = {"TALLYBOOK_INSTANCE": "one", "TALLYBOOK_LEASE": LEASE}
        process = self.stack.start(name, self.settings, **own | env)
        self._processes[name] = process
        return process

    def restart(self, name: str, **env: str) -> subprocess.Popen[bytes]:
        self.stack.stop(self._processes.pop(name))
        return self.start(name, **env)

    def kill_at(self, name: str, failpoint: str, passes: int = 1) -> subprocess.Popen[bytes]:
        """Start `name` anew, so that it dies when it passes `failpoint` for the given time."""
        return self.restart(name, TALLYBOOK_FAILPOINT=f"{failpoint}=kill@{passes}")

    def resurrect(self, name: str, died: subprocess.Popen[bytes]) -> None:
        """Wait until it was killed, and start it again."""
        eventually(lambda: died.poll() is not None)
        assert died.returncode == -signal.SIGKILL, f"{name} ended with {died.returncode}"
        self.start(name)

    @contextmanager
    def doubled(self, *names: str) -> Iterator[list[subprocess.Popen[bytes]]]:
        """A second process of each name beside the first, for as long as the block runs."""
        own = {"TALLYBOOK_INSTANCE": "two", "TALLYBOOK_LEASE": LEASE}
        seconds = [self.stack.start(name, self.settings, **own) for name in names]
        try:
            yield seconds
        finally:
            for each in seconds:
                self.stack.stop(each)

    def close(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            self.stack.stop(process)
        self._pool.close()
        self.client.close()
        self.producer.close()

    def must(self, tenant: str, command: Any) -> None:
        """As a client who repeats what was not answered: the command has to be accepted."""
        self._asked += 1
        key = f"test:{tenant}:{self._asked}"

        def answered() -> Any:
            try:
                return self.client.request(tenant, command, key=key, actor="test", timeout=5)
            except Transient:
                return None

        result = eventually(answered)
        assert result.outcome is Outcome.ACCEPTED, (result.code, result.detail)

    def open(self, tenant: str, airlines: dict[str, str]) -> None:
        """A tenant whose clock stands at the first of January, and its airlines with their cards."""
        self.must(tenant, airline.register())
        self.must(tenant, airline.BOOK)
        bounds = UsageBounds(oldest_days=400, ahead_minutes=600_000)
        self._usage(tenant, UsageControl(tenant=TenantId(tenant), version=2, meters=airline.BOOK.meters, bounds=bounds))
        for name, token in airlines.items():
            self.must(tenant, airline.customer(name, token))
            self.must(tenant, airline.subscription(name))

    def depart(self, tenant: str, name: str, month: datetime, flights: int, *, twice: int = 0) -> None:
        """Report departures of one airline, the first ones a second time."""
        events = tuple(
            UsageEvent(
                id=f"{name}-{month:%m}-{n}",
                source="tower",
                type="departure",
                customer=CustomerId(name),
                time=month + timedelta(hours=n),
                properties={},
            )
            for n in range(flights)
        )
        self._usage(tenant, UsageBatch(tenant=TenantId(tenant), events=events))
        if twice:
            self._usage(tenant, UsageBatch(tenant=TenantId(tenant), events=events[:twice]))

    def advance(self, tenant: str, to: datetime) -> None:
        self.must(tenant, AdvanceClock(to=to))

    def log(self, tenant: str) -> list[EventEnvelope]:
        partition = partition_for(tenant, self.settings.billing_partitions)
        found = []
        for records in scan(self.config, "billing.events", {partition: 0}):
            found += [decode_event(each.value) for each in records if each.key == tenant.encode()]
        return found

    def events(self, tenant: str, kind: type) -> list[Any]:
        return [each.event for each in self.log(tenant) if isinstance(each.event, kind)]

    def charges(self, tenant: str) -> list[dict[str, Any]]:
        """The provider's book: what it really took."""
        answer = httpx.get(f"{self.settings.sandbox}/book").json()
        return [each for each in answer["charges"] if each["metadata"]["tenant_id"] == tenant]

    def paid(self, tenant: str) -> int:
        """How many invoices are paid."""
        with postgres.transaction(self._pool) as tx:
            generation.enter(tx, "billing")
            row = tx.execute(
                "SELECT count(*) FROM invoices WHERE tenant_id = %s AND status = 'paid'", (tenant,)
            ).fetchone()
        return int(row[0]) if row is not None else 0

    def await_paid(self, tenant: str, invoices: int) -> None:
        eventually(lambda: self.paid(tenant) >= invoices, within_s=240)

    def check(self, tenant: str, flights: dict[str, Sequence[int]]) -> None:
        """One invoice per period, totals to the cent, numbers without gaps, one charge per invoice.

        `flights` per airline and closed month.
        """
        issued: list[InvoiceFinalized] = self.events(tenant, InvoiceFinalized)
        expected: Counter[tuple[str, int]] = Counter()
        for name, counts in flights.items():
            expected[name, FEE] += 1  # the invoice at the start
            for count in counts:
                expected[name, FEE + count * UNIT] += 1
        assert Counter((str(each.customer_id), each.total.minor) for each in issued) == expected
        assert len({each.invoice_id for each in issued}) == len(issued)
        assert [each.serial for each in issued] == list(range(1, len(issued) + 1))
        paid = [each.invoice_id for each in self.events(tenant, PaymentSucceeded)]
        assert sorted(paid) == sorted(each.invoice_id for each in issued)
        charged = Counter((each["metadata"]["invoice_id"], each["amount"]) for each in self.charges(tenant))
        assert charged == Counter({(each.invoice_id, each.amount_due.minor): 1 for each in issued})
        assert sum(each.total.minor for each in issued) == sum(minor for _, minor in charged.elements())

    def _usage(self, tenant: str, message: UsageBatch | UsageControl) -> None:
        value = encode_usage(message)
        made = headers(
            id=f"{tenant}-{self._asked}",
            type=type(message).__name__,
            source="tower",
            time=airline.JANUARY,
            schema=fingerprint_of(value),
            tenant=tenant,
        )
        partitions = self.settings.usage_partitions
        where = [partition_for(tenant, partitions)]
        if isinstance(message, UsageControl):
            where = list(range(partitions))
        for partition in where:
            self.producer.send("usage.events", value, key=tenant, headers=made, partition=partition)
        self.producer.flush()
