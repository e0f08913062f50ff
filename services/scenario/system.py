"""Plays the steps of a scenario through the running system: a tenant of its own on a test clock, commands to Kafka,
usage by the SDK. Each step is waited for, so that everything happens in the order that the timeline tells.

What came of it is read from the projections alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

from billing.envelope import Outcome as Answer
from billing.errors import Rejected
from billing.ids import InvoiceId, TenantId
from billing.metering import UsageAmended, UsageVoided
from billing.metering import UsageEvent as Recorded
from billing.money import Money
from billing.payment import RecordManualPayment
from billing.tenant import AdvanceClock
from infra import kafka, postgres
from infra.errors import Transient
from infra.settings import Settings
from projections import generation, usage_read
from services import read_models
from services.commands import CommandClient
from services.scenario.golden import Outcome, Refusal, Span
from services.scenario.kernel import Advance, Arrive, Correct, Played, Send, Step, unnamed
from services.scenario.run import System
from services.scenario.text import Scenario
from tallybook_sdk import NotCorrected, NotDelivered, Unreachable, UsageEvent, UsageProducer

STEP_S = 60.0  # longest wait for one step; a stack at rest takes well below a second
_POLL_S = 0.05
_ACTOR = "scenario"
_QUIET = {"log_level": 2}  # what fails is reported by its exception


@contextmanager
def running(settings: Settings) -> Iterator[System]:
    """The running system, as something that plays scenarios.

    Raises:
        Transient: it does not answer.
    """
    with CommandClient(settings) as commands, postgres.worker_pool(settings, size=1) as pool:
        yield lambda scenario, played: _play(settings, commands, pool, scenario, played)


def _play(
    settings: Settings, commands: CommandClient, pool: postgres.Pool, scenario: Scenario, played: Played
) -> Outcome:
    tenant = f"scenario-{uuid4().hex[:12]}"
    client = settings.kafka_client()
    bootstrap = client.pop("bootstrap.servers")
    config = {**client, **_QUIET}
    try:
        with UsageProducer(bootstrap, tenant, topic_prefix=settings.topic_prefix, kafka=config) as usage:
            stage = _Stage(settings, commands, pool, usage, scenario, played, TenantId(tenant))
            for step in played.steps:
                stage.take(step)
            return stage.outcome()
    except (Unreachable, NotDelivered, NotCorrected) as e:
        raise Transient(f"Kafka at {bootstrap}: {e}") from e


@dataclass(slots=True)
class _Stage:
    """One scenario on its way through the system."""

    settings: Settings
    commands: CommandClient
    pool: postgres.Pool
    usage: UsageProducer
    scenario: Scenario
    played: Played
    tenant: TenantId
    clock: datetime | None = None
    control: int = 0
    """The tenant's event since which its usage is measured as now."""
    sent: int = 0
    """Usage events."""
    corrected: int = 0
    """Voids and amendments."""
    written_as: dict[str, str] = field(default_factory=dict)
    """Id of an event that stands for several -> the id that the timeline gives them all."""
    refusals: list[Refusal] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """Do one step and wait for all that follows from it.

        Raises:
            Transient: it did not follow in time.
        """
        match step:
            case Send():
                self._send(step)
            case Advance(to=to):
                self.clock = to
                self._ask(AdvanceClock(to=to), f"clock:{to.isoformat()}")
            case Arrive():
                self._arrive(step)
            case Correct(correction=correction):
                self._correct(correction)

    def _send(self, step: Send) -> None:
        try:
            self._ask(self._named(step.command), f"{step.line}:{type(step.command).__name__}")
        except Rejected as e:
            said = next((each for each in self.scenario.timeline if each.line == step.line), None)
            if said is None:
                raise
            self.refusals.append(Refusal(said.at, said.text, e.code, e.detail))

    def _ask(self, command: Any, key: str) -> None:
        result = self.commands.request(self.tenant, command, key=f"scenario:{key}", actor=_ACTOR)
        if result.outcome is Answer.REJECTED:
            raise Rejected(result.code, result.detail, field=result.field)
        if result.last_sequence and type(command).__name__ in ("RegisterTenant", "PublishPriceBook", "AdvanceClock"):
            self.control = result.last_sequence
        self._wait(lambda tx: self._settled(tx, result.sequence), f"what follows from {type(command).__name__}")

    def _named(self, command: Any) -> Any:
        """An invoice of the kernel is the one with the same number here."""
        if not isinstance(command, RecordManualPayment):
            return command
        number = next(each.number for each in self.played.outcome.invoices if each.invoice_id == command.invoice_id)
        with postgres.transaction(self.pool) as tx:
            found = read_models.invoice(read_models.entered(tx), self.tenant, number)
        id = found.document.invoice_id if found else InvoiceId(number)
        return RecordManualPayment(invoice_id=id, reference=command.reference)

    def _arrive(self, step: Arrive) -> None:
        partition = kafka.partition_for(self.tenant, self.settings.usage_partitions)
        self._wait(
            lambda tx: usage_read.measured_from(tx, self.tenant).get(partition, 0) >= self.control,
            "the meters to stand in the usage log",
        )
        for event in step.events:
            for number in range(step.count):
                id = event.id if step.count == 1 else f"{event.id}-{number}"
                self.written_as[id] = event.id
                self.usage.send(_sent(event, id))
                self.sent += 1
        self.usage.flush()
        self._wait(lambda tx: self._received(tx) >= self.sent, "usage to be counted")

    def _correct(self, correction: UsageVoided | UsageAmended) -> None:
        if isinstance(correction, UsageAmended):
            self.usage.amend(_sent(correction.event, correction.event.id), reason=correction.reason)
        else:
            self.usage.void(correction.id, source=correction.source, reason=correction.reason)
        self.corrected += 1
        self._wait(lambda tx: self._corrected(tx) >= self.corrected, "usage to be corrected")

    def _received(self, tx: postgres.Cursor) -> int:
        known = usage_read.fates(tx).get(self.tenant)
        return known.received if known else 0

    def _corrected(self, tx: postgres.Cursor) -> int:
        known = usage_read.fates(tx).get(self.tenant)
        refused = len(tx.execute(_UNCORRECTED, (self.tenant,)).fetchall())
        return refused + (known.voided + known.amended + known.repeated if known else 0)

    def _settled(self, tx: postgres.Cursor, sequence: int) -> bool:
        """Whether the projections hold event `sequence`, nothing is due, and no invoice is awaited."""
        row = tx.execute(_OPEN_WORK, {"tenant": self.tenant}).fetchone()
        return row is not None and row[0] >= sequence and row[1] == 0

    def _wait(self, condition: Callable[[postgres.Cursor], bool], what: str) -> None:
        deadline = time.monotonic() + STEP_S
        while True:
            with postgres.transaction(self.pool) as tx:
                generation.enter_all(tx)
                if condition(tx):
                    return
            if time.monotonic() > deadline:
                raise Transient(f"waited {STEP_S:.0f} s for {what}; is all of the stack healthy? (`tallybook status`)")
            time.sleep(_POLL_S)

    def outcome(self) -> Outcome:
        """What the projections say of it all."""
        with postgres.transaction(self.pool) as tx:
            generation.enter_all(tx)
            rows = read_models.invoice_rows(tx, self.tenant, limit=10_000)
            issued = [read_models.invoice(tx, self.tenant, row.id) for row in rows]
            invoices = [each.document for each in issued if each is not None]
            customers = read_models.customers(tx, self.tenant, limit=10_000)
            subscriptions = read_models.subscriptions(tx, self.tenant, limit=10_000)
            fates = usage_read.fates(tx).get(self.tenant)
            counted = tx.execute(_COUNTED, (self.tenant,)).fetchall()
            refused = tx.execute(_REFUSED, (self.tenant,)).fetchall()
            uncorrected = tx.execute(_UNCORRECTED, (self.tenant,)).fetchall()
        return Outcome(
            zone=self.scenario.tenant.zone,
            invoices=invoices,
            refusals=[unnamed(each, invoices) for each in self.refusals],
            credit=[(each.id, Money(a.minor, a.currency)) for each in customers for a in each.credit if a.minor],
            received=fates.received if fates else 0,
            counted=[(customer, at, 1) for customer, at in counted],
            duplicates=fates.duplicate if fates else 0,
            refused=[(self.written_as.get(id, id), code, detail) for id, code, detail in refused],
            voided=fates.voided if fates else 0,
            amended=fates.amended if fates else 0,
            uncorrected=uncorrected,
            spans=[Span(each.customer, each.starts_at, each.ends_at or each.ended_at) for each in subscriptions],
        )


_OPEN_WORK = """
SELECT t.last_sequence,
       (SELECT count(*)
          FROM subscriptions s
         WHERE s.tenant_id = t.tenant_id
           AND s.next_boundary <= t.test_clock
                                - CASE WHEN s.status = 'scheduled' THEN interval '0'
                                       ELSE t.invoice_grace_minutes * interval '1 minute' END)
     + (SELECT count(*) FROM runs r WHERE r.tenant_id = t.tenant_id AND r.state = 'awaited')
  FROM tenants t
 WHERE t.tenant_id = %(tenant)s
"""

_COUNTED = """
SELECT customer_id, event_time
  FROM usage_identity
 WHERE tenant_id = %s AND voided_offset IS NULL
 ORDER BY event_time
"""

_REFUSED = """
SELECT event_id, reason, detail
  FROM usage_rejected
 WHERE tenant_id = %s AND events > 0
 ORDER BY partition, record_offset, batch_index
"""

_UNCORRECTED = _REFUSED.replace("events > 0", "events = 0")


def _sent(event: Recorded, id: str) -> UsageEvent:
    return UsageEvent(
        id=id,
        source=event.source,
        type=event.type,
        customer=event.customer,
        time=event.time,
        properties=dict(event.properties),
    )
