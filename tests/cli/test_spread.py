"""A tenant's usage is spread by the command line, on running services; what senders place wrong is sent again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from billing.tenant import AdvanceClock
from infra import postgres
from infra.local.ports import Ports
from infra.settings import Settings
from projections import generation, usage
from services import meter_publisher
from services.commands import CommandClient
from tallybook_sdk import PublishedSpread, UsageEvent, UsageProducer
from tests.cli.test_commands import Run, runner
from tests.projections.usage_log import count_log
from tests.stack import Stack
from tests.waiting import eventually

CATALOG = """\
tenant: {id: shop, name: Shop, currency: USD, zone: UTC, test_clock: 2026-01-01 00:00}
meters:
  - {key: calls, event_type: call}
plans:
  - key: pro
    name: Pro
    currency: USD
    charges:
      - {key: calls, name: Calls, meter: calls, model: {type: per_unit, unit: 0.01}}
"""
FIRST = datetime(2026, 1, 5, tzinfo=UTC)
SECOND = datetime(2026, 1, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def system(stack: Stack) -> Iterator[Settings]:
    port = Ports(stack.data / "spread-tests").get("api")
    settings = stack.fresh(billing_partitions=1, usage_partitions=3, api_port=port)
    processes = [stack.start(name, settings) for name in ("command-handler", "projector", "meters", "api")]
    with CommandClient(settings) as client:
        client.request("nobody", AdvanceClock(to=datetime.now(UTC)), key="test:warm", actor="test", timeout=120)
    yield settings
    for each in processes:
        stack.stop(each)


@pytest.fixture
def tallybook(
    stack: Stack,
    system: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    ours = {name: value for name, value in stack.environment(system).items() if name.startswith("TALLYBOOK_")}
    run = runner(ours, monkeypatch, capsys)
    if "Shop" not in run("tenants", "list")[1]:
        path = tmp_path / "catalog.yaml"
        path.write_text(CATALOG)
        assert run("catalog", "apply", str(path))[0] == 0
        eventually(lambda: "Shop" in run("tenants", "list")[1], within_s=60)
    return run


def counted(settings: Settings) -> dict[int, int]:
    """Events that count, by partition, once all that is on the log is judged."""
    with postgres.worker_pool(settings) as pool:
        count_log(settings, pool)
        with postgres.transaction(pool) as tx:
            generation.enter(tx, usage.SET)
            return dict(tx.execute("SELECT partition, count(*) FROM usage_identity GROUP BY 1").fetchall())


def publish(tallybook: Run, settings: Settings, partitions: int, since: datetime) -> None:
    """Spread from `since` on, and move the clock there: from then on there may be events of that time."""
    code, out, err = tallybook("tenants", "spread", "shop", str(partitions), "--from", since.isoformat())
    assert (code, f"usage will lie in {partitions} partitions" in out) == (0, True), err
    eventually(lambda: f"{since.isoformat()} on in {partitions}" in tallybook("tenants", "spread", "shop")[1], 30)
    _, out, _ = tallybook("clock", "advance", "--to", (since + timedelta(days=1)).isoformat(), "--json")
    with postgres.worker_pool(settings) as pool:

        def told() -> bool:
            with postgres.transaction(pool) as tx:
                generation.enter_all(tx)
                row = tx.execute("SELECT last_sequence FROM tenants WHERE test_clock > %s", (since,)).fetchone()
                return row is not None and meter_publisher.published(tx, "shop") >= row[0]

        eventually(told, within_s=30)


def test_a_bad_spread_is_refused_by_name_with_what_is_allowed(tallybook: Run) -> None:
    for partitions in ("0", "4", "many"):
        code, _, err = tallybook("tenants", "spread", "shop", partitions)
        assert (code, "invalid value for partitions" in err.lower().replace("'", "")) == (2, True)
    assert "4: allowed are 1 to 3, as the usage log has" in tallybook("tenants", "spread", "shop", "4")[2]
    code, _, err = tallybook("tenants", "spread", "shop", "2", "--from", "soon")
    assert (code, "--from" in err) == (2, True)
    code, _, err = tallybook("tenants", "spread", "shop", "--from", FIRST.isoformat())
    assert (code, "PARTITIONS" in err) == (2, True)
    code, _, err = tallybook("tenants", "spread", "nobody", "2")
    assert (code, "there is no tenant 'nobody'; known: shop" in err) == (1, True)
    code, _, err = tallybook("tenants", "spread", "shop", "2", "--from", "2026-01-01T12:00:00Z")
    assert (code, "effective_from" in err, "allowed is that time or later" in err) == (1, True, True)
    assert tallybook("tenants", "spread", "shop")[1] == "shop: usage lies in 1 partition of 3\n"


def test_usage_is_spread_and_what_lies_elsewhere_is_sent_again(
    tallybook: Run, system: Settings, tmp_path: Path
) -> None:
    publish(tallybook, system, 3, FIRST)
    assert "already; nothing changed" in tallybook("tenants", "spread", "shop", "3")[1]
    file = tmp_path / "usage.csv"
    lines = [f"f-{number},call,ann,{FIRST.isoformat()}\n" for number in range(30)]
    file.write_text("id,type,customer,time\n" + "".join(lines))
    code, out, err = tallybook("usage", "import", str(file), "--tenant", "shop")
    assert (code, "30 events are on Kafka" in out) == (0, True), err
    found = counted(system)
    assert (len(found), sum(found.values())) == (3, 30)

    key = json.loads(tallybook("keys", "create", "--tenant", "shop", "--json")[1])["key"]
    old = PublishedSpread(f"http://127.0.0.1:{system.api_port}", key, refresh=timedelta(minutes=30))
    eventually(lambda: old.ready() is None, within_s=60)
    publish(tallybook, system, 1, SECOND)
    new = PublishedSpread(f"http://127.0.0.1:{system.api_port}", key)
    client = system.kafka_client()
    bootstrap = client.pop("bootstrap.servers")
    for spread, ids in ((old, range(30)), (new, range(20, 40))):
        with UsageProducer(bootstrap, "shop", spread=spread, topic_prefix=system.topic_prefix, kafka=client) as sdk:
            for id in ids:
                sdk.send(UsageEvent(id=f"s-{id}", source="sdk", type="call", customer="ann", time=SECOND))
    first = sum(counted(system).values())
    listed = json.loads(tallybook("usage", "rejected", "list", "--json")[1])
    assert {each["reason"] for each in listed} == {"key_mismatch"}
    assert len({each["id"] for each in listed}) == len(listed)
    missing = [each for each in listed if not each["counted_since"]]
    assert first == 30 + 40 - len(missing) < 70

    code, out, _ = tallybook("usage", "rejected", "requeue", "--all")
    assert (code, f"{len(missing)} events sent" in out) == (0, True)
    tallybook("usage", "rejected", "requeue", "--all")  # at once: copies meet, wherever they were refused before
    assert sum(counted(system).values()) == 70
    assert f"{len(listed)} events counted already" in tallybook("usage", "rejected", "requeue", "--all")[1]
    for each in (old, new):
        each.close()
