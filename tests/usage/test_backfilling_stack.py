"""The whole path of a backfill: from the command line to the invoice that waits for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra import postgres
from infra.kafka import KafkaConfig
from projections import generation
from services.usage_backfilling import LogTooShort, reader
from tests.cli.test_commands import Run, runner
from tests.projections.history import START
from tests.projections.usage_log import calls, cut_by_retention, send
from tests.stack import Stack
from tests.waiting import eventually

CATALOG = """\
tenant:
  id: shop
  name: Shop
  currency: USD
  zone: UTC
  test_clock: 2013-01-01 00:00
  bounds: {oldest_days: 34, ahead_minutes: 57600}
meters:
  - {key: volume, event_type: parcel, aggregation: sum, value: litres}
plans:
  - key: pro
    name: Pro
    currency: USD
    charges:
      - {key: volume, name: Volume, meter: volume, model: {type: per_unit, unit: 1.00}}
customers:
  - {id: acme, name: Acme}
  - {id: bolt, name: Bolt}
subscriptions:
  - {id: s1, customer: acme, plan: pro, starts_at: 2013-01-01 00:00}
"""
USAGE = """\
id,type,customer,time,litres,kilos
1,parcel,acme,2013-01-02T10:00:00Z,100,7
2,parcel,acme,2013-01-03T10:00:00Z,200,8
3,parcel,acme,2013-01-03T10:30:00Z,400,
4,parcel,bolt,2013-01-03T10:00:00Z,5,5
"""
PROCESSES = ("command-handler", "projector", "meters", "usage-aggregator", "scheduler", "invoicing")


@pytest.fixture
def tallybook(stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line on a system without the process `backfill`; and what starts that."""
    settings = stack.fresh(billing_partitions=1, usage_partitions=2)
    processes = [stack.start(name, settings) for name in PROCESSES]
    ours = {name: value for name, value in stack.environment(settings).items() if name.startswith("TALLYBOOK_")}
    yield (
        runner(ours, monkeypatch, capsys),
        settings,
        lambda: processes.append(stack.start("backfill", settings)),
    )
    for each in processes:
        stack.stop(each)


def told(run: Run, *words: str) -> Any:
    code, out, err = run(*words)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("kept_from", [3, 6])
def test_a_log_that_is_cut_before_it_was_read_is_told_to_be_too_short(stack: Stack, kept_from: int) -> None:
    settings = stack.fresh(usage_partitions=1)
    for number in range(6):
        send(settings, "acme", calls("ann", 1, START, prefix=str(number)))
    read = reader(KafkaConfig.of(settings))
    assert [each.offset for records in read(0, 2, 6) for each in records] == [2, 3, 4, 5]

    begun = iter(read(0, 2, 6))
    cut_by_retention(settings, 0, kept_from)

    with pytest.raises(LogTooShort, match=f"begins at offset {kept_from}; events from 2 on count"):
        list(begun)


def test_an_invoice_waits_for_a_backfill_and_bills_its_result(tallybook: Any, tmp_path: Path) -> None:
    run, settings, start_backfill = tallybook
    catalog, usage = tmp_path / "catalog.yaml", tmp_path / "usage.csv"
    catalog.write_text(CATALOG)
    usage.write_text(USAGE)

    def is_applied() -> bool:
        return bool(run("catalog", "apply", str(catalog), "--json")[0] == 0)

    eventually(is_applied, within_s=120)

    def rows(statement: str) -> list[Any]:
        with postgres.connect(postgres.worker_url(settings)) as connection:
            tx = connection.cursor()
            generation.enter_all(tx)
            return tx.execute(statement).fetchall()

    # Usage that comes before its tenant's control record would be refused.
    eventually(
        lambda: len(rows("SELECT FROM usage_control WHERE position('volume'::bytea IN control) > 0")) == 2, within_s=60
    )
    assert run("usage", "send", str(usage), "--tenant", "shop")[0] == 0
    eventually(lambda: rows("SELECT sum(total) FROM usage_window") == [(705,)], within_s=60)

    catalog.write_text(CATALOG.replace("value: litres", "value: kilos"))
    is_applied()
    asked = ("meters", "backfill", "volume", "--from", "2013-01-01 00:00")
    eventually(lambda: told(run, *asked, "--dry-run", "--json")["changes"], within_s=60)
    foreseen = told(run, *asked, "--dry-run", "--json")
    assert (foreseen["events"], foreseen["unmeasured"]) == (4, 1)
    (acme,) = foreseen["changes"]
    assert (acme["customer"], acme["before"], acme["after"], acme["events_after"]) == ("acme", "700", "15", 2)
    code, out, _ = run(*asked, "--dry-run")
    assert (code, "nothing changed" in out, "-685" in out) == (0, True, True)
    assert run("meters", "backfill", "volume", "--from", "2012-11-01 00:00")[0] == 1
    told(run, *asked, "--json")

    def shown() -> Any:
        return told(run, "meters", "backfills", "--json")

    eventually(lambda: [each["state"] for each in shown()] == ["pending"], within_s=60)
    assert run("clock", "advance", "--to", "2013-02-01 00:00")[0] == 0
    waiting = "SELECT FROM app.invoice_job WHERE state = 'waiting' AND detail LIKE 'usage up to the cut%' AND tries > 3"
    eventually(lambda: rows(waiting), within_s=60)
    start_backfill()
    assert run("clock", "advance", "--to", "2013-02-01 00:01", "--wait", "--timeout", "60")[0] == 0
    (done,) = shown()
    assert (done["state"], done["events"], done["unmeasured"], done["partitions_done"]) == ("done", 4, 1, 1)
    assert rows("SELECT sum(total_minor) FROM invoices") == [(1500,)]

    # The period is closed: what a second change makes of it is settled by the next invoice.
    catalog.write_text(CATALOG)
    is_applied()
    told(run, "meters", "backfill", "volume", "--from", "2013-01-01 00:00", "--json")
    eventually(lambda: [each["state"] for each in shown()] == ["done", "done"], within_s=60)
    assert run("clock", "advance", "--to", "2013-03-01 00:00", "--wait", "--timeout", "60")[0] == 0
    assert rows("SELECT sum(total_minor) FROM invoices") == [(70_000,)]
    assert run("replay", "verify")[0] == 0
