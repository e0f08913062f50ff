"""The command line on a running system: what it does, what it prints, and the code it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from billing.tenant import AdvanceClock
from infra.settings import Settings
from services.cli import main
from services.commands import CommandClient
from tests.stack import Stack
from tests.waiting import eventually

CATALOG = """\
tenant:
  id: shop
  name: Shop
  currency: USD
  zone: America/New_York
  test_clock: 2013-01-01 00:00
plans:
  - key: pro
    name: Pro
    currency: USD
    charges:
      - {key: base, name: Base fee, in_advance: true, model: {type: flat, amount: 20.00}}
coupons:
  - {code: TEN, percent: 10}
customers:
  - {id: acme, name: Acme, coupons: [TEN]}
subscriptions:
  - {id: s1, customer: acme, plan: pro, starts_at: 2013-01-15 00:00}
"""
Run = Callable[..., tuple[int, str, str]]


def runner(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `tallybook ...` in this process: (exit code, standard output, standard error)."""
    for name in [name for name in os.environ if name.startswith("TALLYBOOK_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def system(stack: Stack) -> Iterator[Settings]:
    """What a catalogue needs, on a database and topics of this module."""
    settings = stack.fresh(billing_partitions=1, usage_partitions=1)
    processes = [stack.start(name, settings) for name in ("command-handler", "projector", "meters")]
    with CommandClient(settings) as client:
        # A process that was just started takes its time until it has its partitions.
        client.request("nobody", AdvanceClock(to=datetime.now(UTC)), key="test:warm", actor="test", timeout=120)
    yield settings
    for each in processes:
        stack.stop(each)


@pytest.fixture
def tallybook(
    stack: Stack, system: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    ours = {name: value for name, value in stack.environment(system).items() if name.startswith("TALLYBOOK_")}
    return runner(ours, monkeypatch, capsys)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line where nothing runs."""
    return runner({"TALLYBOOK_DATA": str(tmp_path)}, monkeypatch, capsys)


def written(folder: Path, text: str = CATALOG) -> str:
    path = folder / "catalog.yaml"
    path.write_text(text)
    return str(path)


def outcomes(out: str) -> dict[str, str]:
    return {f"{each['what']} {each['id']}": each["outcome"] for each in json.loads(out)["changes"]}


def test_a_catalogue_is_applied_once_and_is_then_so(tallybook: Run, tmp_path: Path) -> None:
    file = written(tmp_path)
    code, out, err = tallybook("catalog", "apply", file, "--json")
    assert code == 0, err
    first = outcomes(out)
    assert set(first.values()) == {"created"}
    assert len(first) == 5
    code, out, _ = tallybook("catalog", "apply", file, "--json")
    assert (code, set(outcomes(out).values())) == (0, {"unchanged"})

    dearer = CATALOG.replace("20.00", "25.00").replace("name: Acme", "name: Acme Ltd")
    _, out, _ = tallybook("catalog", "apply", written(tmp_path, dearer), "--json")
    changed = [what for what, outcome in outcomes(out).items() if outcome != "unchanged"]
    assert [each.split()[0] for each in changed] == ["price", "customer"]
    _, out, _ = tallybook("catalog", "apply", written(tmp_path), "--json")
    assert sum(outcome != "unchanged" for outcome in outcomes(out).values()) == 2, "going back is a change, too"

    moved = CATALOG.replace("2013-01-15", "2013-01-16")
    code, out, err = tallybook("catalog", "apply", written(tmp_path, moved))
    assert code == 1
    assert "subscription 's1' exists" in err
    assert "stopped after 4 steps" in err


def test_people_read_tenants_clock_keys_and_invoices(tallybook: Run, tmp_path: Path) -> None:
    assert tallybook("catalog", "apply", written(tmp_path))[0] == 0
    eventually(lambda: "Shop" in tallybook("tenants", "list")[1])
    assert "2013-01-01 00:00:00-05:00" in tallybook("clock", "show")[1]
    code, out, _ = tallybook("clock", "advance", "--to", "2013-01-10 00:00")
    assert (code, "2013-01-10 00:00:00-05:00" in out) == (0, True)
    code, _, err = tallybook("clock", "advance", "--to", "2013-01-09 00:00")
    assert (code, "moves forward only" in err) == (1, True)
    code, out, _ = tallybook("keys", "create", "--tenant", "shop", "--name", "web", "--json")
    key = json.loads(out)["key"]
    assert (code, key.startswith("tb_")) == (0, True)
    shown = tallybook("keys", "list", "--tenant", "shop")[1]
    assert "web" in shown
    assert key.split("_", 2)[2] not in shown  # a secret may begin with the same sign
    assert tallybook("keys", "revoke", key)[0] == 0
    assert tallybook("keys", "revoke", key)[0] == 1
    assert tallybook("invoices", "list", "--json")[1].strip() == "[]"


def test_people_change_what_a_customer_is_given_and_taxed(tallybook: Run, tmp_path: Path) -> None:
    assert tallybook("catalog", "apply", written(tmp_path))[0] == 0
    eventually(lambda: "Shop" in tallybook("tenants", "list")[1])
    code, out, err = tallybook("customers", "jurisdiction", "acme", "US-NY", "--json")
    assert (code, json.loads(out)["jurisdiction"]) == (0, "US-NY"), err
    words = ("customers", "grant", "acme", "20.00", "USD", "--as", "spring", "--until", "2013-03-01")
    assert "would grant 20.00 USD to acme; nothing changed" in tallybook(*words, "--dry-run")[1]
    assert "acme: TEN; credit 20.00 USD; taxed by US-NY" in tallybook(*words)[1]
    assert "USD" in tallybook("customers", "list")[1]
    code, _, err = tallybook("customers", "expire", "acme", "spring")
    assert (code, "ends at 2013-03-01" in err) == (1, True)
    code, _, err = tallybook("customers", "grant", "acme", "0.001", "USD", "--as", "dust")
    assert (code, "finer than USD" in err) == (1, True)


def test_a_tenants_taxes_change_with_its_file(tallybook: Run, tmp_path: Path) -> None:
    assert tallybook("catalog", "apply", written(tmp_path))[0] == 0
    taxed = CATALOG.replace("  zone:", "  taxes: [{code: vat, percent: 5}]\n  zone:")
    _, out, _ = tallybook("catalog", "apply", written(tmp_path, taxed), "--json")
    assert outcomes(out)["tenant Shop"] == "changed"
    assert tallybook("catalog", "apply", written(tmp_path, CATALOG))[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["invoices", "show", "NYC-1"], 1, "there is no invoice 'NYC-1'"),
        (["invoices", "list", "--tenant", "nobody"], 1, "there is no tenant 'nobody'"),
        (["invoices", "list", "--status", "late"], 2, "neither open nor paid"),
        (["invoices", "lst"], 2, "lst"),
        (["invoices", "list", "--lmit", "3"], 2, "--limit"),
        (["invoices", "show"], 2, "NUMBER|ID"),
        (["clock", "advance", "--to", "2013-02-30"], 2, "--to"),
        (["clock", "advance", "--to", "2013-03-10 02:30"], 2, "skip 2013-03-10 02:30"),
        (["catalog", "apply", "no-such-file.yaml"], 2, "does not exist"),
        (["keys", "create"], 2, "--tenant"),
    ],
)
def test_a_refusal_has_its_code_and_names_what_is_wrong(
    tallybook: Run, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    assert tallybook("catalog", "apply", written(tmp_path))[0] == 0
    found, _, err = tallybook(*words)
    assert found == code, err
    assert said in err
    assert "Traceback" not in err


def test_a_dry_run_needs_nothing_and_changes_nothing(nowhere: Run, tmp_path: Path) -> None:
    code, out, _ = nowhere("catalog", "apply", written(tmp_path), "--dry-run")
    assert code == 0
    assert "would create" in out
    assert out.splitlines()[-1] == "nothing changed"


def test_a_bad_catalogue_is_refused_with_file_line_and_field(nowhere: Run, tmp_path: Path) -> None:
    file = written(tmp_path, CATALOG.replace("percent", "precent"))
    code, _, err = nowhere("catalog", "apply", file)
    assert code == 1
    assert f"{file}:14: coupons[0].precent: there is no field 'precent' here; did you mean 'percent'?" in err
    code, out, _ = nowhere("catalog", "check", file, "--json")
    assert code == 1
    assert json.loads(out)["faults"][0]["line"] == 14


@pytest.mark.parametrize("words", [["invoices", "list"], ["tenants", "list"], ["keys", "list"], ["clock", "show"]])
def test_what_does_not_run_is_unreachable(nowhere: Run, words: list[str]) -> None:
    code, _, err = nowhere(*words)
    assert code == 69
    assert "tallybook up" in err


def test_a_server_that_is_away_is_unreachable(nowhere: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYBOOK_POSTGRES", "postgresql://someone:secret@127.0.0.1:1/none")
    code, _, err = nowhere("invoices", "list")
    assert code == 69
    assert "127.0.0.1" in err
    assert "secret" not in err


def test_a_bad_setting_is_misconfigured(nowhere: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYBOOK_POSTGRESS", "x")
    code, _, err = nowhere("invoices", "list")
    assert (code, "TALLYBOOK_POSTGRESS" in err) == (78, True)


def test_a_reader_that_has_seen_enough_is_no_error(
    stack: Stack, system: Settings, tallybook: Run, tmp_path: Path
) -> None:
    assert tallybook("catalog", "apply", written(tmp_path))[0] == 0
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -m services.cli tenants list | head -c 1', sys.executable],
        env=stack.environment(system),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
