"""`tallybook replay verify`: both logs again from the beginning, and every invoice made again from them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from billing import closing
from billing.backfilling import Backfill
from billing.catalog import Plan, PublishPriceBook
from billing.ids import TenantId
from billing.invoicing import RATING_ENGINES
from billing.metering import Filter, UsageControl
from billing.price import Charge, PerUnit
from billing.proration import Proration
from infra import postgres
from infra.settings import Settings
from projections import generation
from services import cli
from tests.projections.history import CALLS, START, History
from tests.projections.log import append
from tests.projections.test_replay import project_log
from tests.projections.usage_log import BOUNDS, calls, count_log, measure_from_now_on, send
from tests.projections.usage_log import append as append_usage
from tests.stack import Stack

pytestmark = pytest.mark.usefixtures("topics")


@pytest.fixture
def billed(fresh: Settings, pool: postgres.Pool) -> Settings:
    """Two months of two tenants: usage counted, duplicates among it, invoices issued for exactly what was counted."""
    for tenant in ("acme", "bolt"):
        history = History(tenant).register().subscribe("ann", coupon="TEN")
        measure_from_now_on(fresh, tenant, START)
        used = calls("ann", 1234, START)
        send(fresh, tenant, used)
        send(fresh, tenant, used[:17])  # duplicates
        positions = send(fresh, tenant, [replace(used[0], id="odd", type="unheard.of")])  # refused
        history.issue_awaited()
        history.issue(history.close("ann", positions=positions), 1234)
        february = history.state.tenant.clock  # type: ignore[union-attr]
        positions = send(fresh, tenant, calls("ann", 50, february))
        history.issue(history.close("ann", positions=positions), 50)
        append(fresh, history.events)
    project_log(fresh, pool)
    count_log(fresh, pool)
    return fresh


def run(stack: Stack, settings: Settings, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    for name, value in stack.environment(settings).items():
        if name.startswith("TALLYBOOK_"):
            monkeypatch.setenv(name, value)
    return cli.main(["replay", *arguments])


def as_json(output: str) -> dict[str, object]:
    return json.loads(output)  # type: ignore[no-any-return]


def test_identical(
    stack: Stack, billed: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stack, billed, monkeypatch, "verify") == 0
    shown = capsys.readouterr().out
    assert "6 invoices rated again, 0 differing" in shown
    assert shown.endswith("identical\n")


@pytest.mark.parametrize(
    ("schema", "tampering", "table"),
    [
        (
            "billing",
            "UPDATE invoices SET total_minor = total_minor + 1, tax_minor = tax_minor + 1 WHERE serial = 2",
            "invoices",
        ),
        ("billing", "UPDATE entitlements SET limit_quantity = 1000000", "entitlements"),
        ("usage", "UPDATE usage_window SET total = total + 1", "usage_window"),
        (
            "usage",
            "DELETE FROM usage_value WHERE record_offset = (SELECT max(record_offset) FROM usage_value)",
            "usage_value",
        ),
    ],
)
def test_a_change_by_hand_is_reported(
    stack: Stack,
    billed: Settings,
    pool: postgres.Pool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    schema: str,
    tampering: str,
    table: str,
) -> None:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, schema)
        assert tx.execute(tampering).rowcount > 0
    assert run(stack, billed, monkeypatch, "verify", "--json") == 1
    report = as_json(capsys.readouterr().out)
    tables = report["tables"]
    assert isinstance(tables, dict)
    found = [each for compared in tables.values() for each in compared if each["missing"] or each["unexplained"]]
    assert [each["table"] for each in found] == [table]


def test_an_invoice_that_does_not_follow_from_the_log_is_reported(
    stack: Stack,
    fresh: Settings,
    pool: postgres.Pool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    history = History("acme").register().subscribe("ann")
    measure_from_now_on(fresh, "acme", START)
    positions = send(fresh, "acme", calls("ann", 1000, START))
    history.issue_awaited()
    history.issue(history.close("ann", positions=positions), 3000)  # two thousand calls nobody made
    append(fresh, history.events)
    project_log(fresh, pool)
    count_log(fresh, pool)
    assert run(stack, fresh, monkeypatch, "verify") == 1
    shown = capsys.readouterr().out
    assert "2 invoices rated again, 1 differing" in shown
    assert "calls of 3,000 for 15.00; the log makes it calls of 1,000 for 5.00" in shown


def test_runs_of_every_rating_engine_are_made_again(
    stack: Stack,
    fresh: Settings,
    pool: postgres.Pool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A minimum of 31.00 in the last 16 days of January: the first engine charged all of it, as it still does."""
    least = Charge(key="calls", name="Calls", model=PerUnit(Decimal("0.005")), meter="calls", minimum=Decimal(31))
    day = Plan(key="pro", name="Pro", currency="USD", charges=(least,), proration=Proration.DAY)
    totals = []
    for engine in RATING_ENGINES:
        monkeypatch.setattr(closing, "RATING_ENGINE", engine)
        history = History(f"engine-{engine}").register(taxes=())
        history.send(PublishPriceBook(meters=(CALLS,), plans=(day,)))
        history.advance(START + timedelta(days=15)).subscribe("ann")
        measure_from_now_on(fresh, history.tenant, START)
        positions = send(fresh, history.tenant, calls("ann", 100, START + timedelta(days=20)))
        totals.append(str(history.issue(history.close("ann", positions=positions), 100).total))
        append(fresh, history.events)
    project_log(fresh, pool)
    count_log(fresh, pool)
    assert totals == ["31.00", "16.00"]
    assert run(stack, fresh, monkeypatch, "verify") == 0
    assert "2 invoices rated again, 0 differing" in capsys.readouterr().out


def test_rebuild_swaps_both_sets_and_everything_is_still_identical(
    stack: Stack,
    billed: Settings,
    pool: postgres.Pool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        tx.execute("UPDATE invoices SET seller = 'Somebody Else'")
    assert run(stack, billed, monkeypatch, "rebuild", "--set", "all", "--dry-run") == 0
    assert "would fill" in capsys.readouterr().out
    assert run(stack, billed, monkeypatch, "rebuild", "--set", "all") == 2  # nobody said yes
    assert run(stack, billed, monkeypatch, "rebuild", "--set", "all", "--yes") == 0
    assert "took the place of billing_g1" in capsys.readouterr().out
    send(billed, "acme", calls("ann", 5, START, prefix="more-"))
    count_log(billed, pool)
    assert run(stack, billed, monkeypatch, "verify", "--json") == 0
    assert as_json(capsys.readouterr().out)["identical"] is True


def test_what_is_to_be_counted_again_is_done_on_both_sides_first(
    stack: Stack,
    billed: Settings,
    pool: postgres.Pool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    eu = replace(CALLS, filters=(Filter(property="region", values=("eu",)),))
    asked = UsageControl(
        tenant=TenantId("acme"),
        version=2,
        meters=(eu,),
        bounds=BOUNDS,
        clock=START,
        backfill=Backfill(meter=CALLS.key, from_time=START),
    )
    append_usage(billed, "acme", asked, range(billed.usage_partitions))
    count_log(billed, pool)

    def states() -> set[str]:
        with postgres.transaction(pool) as tx:
            generation.enter(tx, "usage")
            return {state for (state,) in tx.execute("SELECT state FROM usage_backfill").fetchall()}

    assert states() == {"pending"}
    assert run(stack, billed, monkeypatch, "verify") == 0
    shown = capsys.readouterr().out
    assert "6 invoices rated again, 0 differing" in shown, "they were cut before"
    assert states() == {"done"}
    assert run(stack, billed, monkeypatch, "rebuild", "--set", "usage", "--yes") == 0
    assert states() == {"done"}


def test_a_generation_of_another_version_is_not_compared_but_replaced(
    stack: Stack,
    billed: Settings,
    owner: postgres.Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owner.execute("ALTER TABLE billing_g1.invoices ADD COLUMN added_later text")
    assert run(stack, billed, monkeypatch, "verify", "--set", "billing") == 1
    assert "tallybook replay rebuild --set billing --yes" in capsys.readouterr().err
    assert run(stack, billed, monkeypatch, "rebuild", "--set", "billing", "--yes") == 0
    assert run(stack, billed, monkeypatch, "verify", "--set", "billing") == 0
