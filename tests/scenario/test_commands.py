"""`tallybook scenario` and `tallybook price` at the command line: what they print, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "scenarios"
AIRPORT = ROOT / "examples" / "airport" / "catalog.yaml"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tallybook(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_folder_of_scenarios_is_run_as_a_whole(tallybook: Run) -> None:
    code, out, _ = tallybook("scenario", "run", EXAMPLES)
    assert code == 0
    assert out.splitlines()[-1].endswith("as expected, 0 differ, 0 cannot be read")


def test_a_difference_ends_with_1_and_an_unreadable_file_with_2(tallybook: Run, tmp_path: Path) -> None:
    good = (EXAMPLES / "money-yen.scenario").read_text()
    (tmp_path / "a.scenario").write_text(good.replace("6,790", "6,791"))
    code, out, _ = tallybook("scenario", "run", tmp_path)
    assert (code, "+++" in out) == (1, True)
    (tmp_path / "b.scenario").write_text(good.replace("2026-02-01  clock", "2026-02-01  klock"))
    code, out, err = tallybook("scenario", "run", tmp_path)
    assert code == 2
    line = good.splitlines().index("2026-02-01  clock") + 1
    assert err.startswith(f"{tmp_path}/b.scenario:{line}: verb: there is no 'klock'; did you mean 'clock'?")
    assert out.splitlines()[-1] == "0 as expected, 1 differ, 1 cannot be read"


def test_programs_read_results_and_faults(tallybook: Run, tmp_path: Path) -> None:
    good = (EXAMPLES / "money-yen.scenario").read_text()
    (tmp_path / "a.scenario").write_text(good)
    (tmp_path / "b.scenario").write_text(good.replace("unit: 0.5", "unit: -0.5"))
    code, out, _ = tallybook("scenario", "run", tmp_path, "--json")
    found = json.loads(out)
    assert code == 2
    assert [each["status"] for each in found["results"]] == ["passed"]
    assert [(each["field"], each["code"]) for each in found["faults"]] == [
        ("plans[0].charges[0].model.unit", "out_of_range")
    ]


def test_only_the_kernel_writes_expectations(tallybook: Run) -> None:
    assert tallybook("scenario", "run", EXAMPLES, "--update", "--stack")[0] == 2


def test_a_price_from_the_catalogue_shows_its_tiers(tallybook: Run) -> None:
    asked = ("price", "--catalog", AIRPORT, "--plan", "airside", "--charge", "departures", "--quantity", "1407")
    code, out, _ = tallybook(*asked)
    assert code == 0
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "Departures 1,407",
        "tier 1 1,000 x 12.00 12,000.00",
        "tier 2 407 x 9.50 3,866.50",
        "USD 15,866.50",
        "= 1,000 x 12.00 + 407 x 9.50",
    ]
    found = json.loads(tallybook(*asked, "--json")[1])
    assert found["amount"] == {"minor": 1586650, "currency": "USD", "decimal": "15866.50"}
    assert [step["amount"] for step in found["steps"]] == ["12000.00", "3866.50"]


@pytest.mark.parametrize(
    ("words", "minor"),
    [
        (("--charge", "{model: {type: per_unit, unit: 0.005}}", "--quantity", "201"), 101),
        (("--charge", "{model: {type: per_unit, unit: 0.5}}", "--quantity", "3", "--currency", "JPY"), 2),
        (("--charge", '{"model": {"type": "flat", "amount": "9.99"}}'), 999),
        (("--charge", "{model: {type: percentage, percent: 1, fixed: 0.10}}", "--quantity", "50"), 60),
        (
            (
                "--charge",
                "{model: {type: percentage, percent: 2.9, minimum: 1.00}}",
                *("--transaction", "10", "--transaction", "100"),
            ),
            390,
        ),
        (
            (
                *("--charge", "{model: {type: matrix, dimensions: [a, b], cells: [], default: 2}}"),
                *("--cell", "x,y=3", "--cell", "x,=0.5"),
            ),
            700,
        ),
    ],
)
def test_a_charge_is_priced_from_flags(tallybook: Run, words: tuple[str, ...], minor: int) -> None:
    code, out, err = tallybook("price", *words, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["amount"]["minor"] == minor


def test_events_are_measured_before_they_are_priced(tallybook: Run, tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    rows = ["id,type,customer,time,origin", *(f"f{n},flight.departed,HA,2013-01-0{n}T10:00Z,JFK" for n in range(1, 4))]
    events.write_text("\n".join([*rows, rows[-1]]) + "\n")  # the last one twice
    asked = ("price", "--catalog", AIRPORT, "--plan", "airside", "--charge", "gate", "--events", events, "--json")
    found = json.loads(tallybook(*asked)[1])
    assert (found["quantity"], found["amount"]["minor"]) == ("3", 1275)


def test_a_request_is_read_from_a_file(tallybook: Run, tmp_path: Path) -> None:
    request = tmp_path / "request.yaml"
    request.write_text(
        "currency: EUR\n"
        "charge: {model: {type: package, size: 10, price: 5}}\n"
        "meter: {aggregation: max, value: gb}\n"
        "events: [{properties: {gb: 5.5}}, {properties: {gb: 12}}]\n"
    )
    assert json.loads(tallybook("price", request, "--json")[1])["amount"]["decimal"] == "10.00"
    request.write_text(request.read_text().replace("price: 5", "price: -5"))
    code, _, err = tallybook("price", request)
    assert code == 1
    assert err.startswith(f"{request}:2: charge.model.price: ")


PER_UNIT = ("--charge", "{model: {type: per_unit, unit: 1}}")
GATE = ("--catalog", str(AIRPORT), "--plan", "airside", "--charge", "gate")


@pytest.mark.parametrize(
    ("words", "field", "code"),
    [
        ((), "charge", "missing_field"),
        (PER_UNIT, "quantity", "missing_field"),
        ((*PER_UNIT, "-q", "NaN"), "quantity", "not_finite"),
        ((*PER_UNIT, "-q", "1e400"), "quantity", "invalid_decimal"),
        ((*PER_UNIT, "-q", "1" * 101), "quantity", "invalid_decimal"),
        ((*PER_UNIT, "-q", "1", "--transaction", "2"), "transactions", "unexpected"),
        ((*PER_UNIT, "-q", "1", "--currency", "XXQ"), "currency", "unknown_currency"),
        (("--charge", "{model: {type: per_unit, unit: -1}}", "-q", "1"), "charge.model.unit", "out_of_range"),
        (("--charge", "{model: {type: per_unit}}", "-q", "1"), "charge.model.unit", "missing_field"),
        (
            ("--charge", "{discount_percent: 300, model: {type: per_unit, unit: 1}}", "-q", "1"),
            "charge.discount_percent",
            "out_of_range",
        ),
        (("--charge", "{model: [", "-q", "1"), "charge", "malformed"),
        ((*GATE, "-q", "5"), "cells", "missing_field"),
        ((*GATE, "--cell", "JFK,x=5"), "cells[0].values", "wrong_length"),
        ((*GATE, "--cell", "ORD=5"), "", "unpriced_cell"),
        ((*GATE[:-1], "none", "-q", "5"), "charge", "unknown_charge"),
        (("--catalog", str(AIRPORT), "--plan", "x", "--charge", "gate", "-q", "5"), "plan", "unknown_plan"),
    ],
)
def test_what_cannot_be_priced_is_refused_by_field(
    tallybook: Run, words: tuple[str, ...], field: str, code: str
) -> None:
    exit_code, out, err = tallybook("price", *words, "--json")
    assert exit_code == 1
    assert [(each["field"], each["code"]) for each in json.loads(out)["faults"]] == [(field, code)]
    assert err.startswith(f"{field}: " if field else "there is no price")


@pytest.mark.parametrize(
    "words",
    [
        ("--catalog", str(AIRPORT), "--charge", "gate"),
        (*PER_UNIT, "--cell", "5"),
        (*GATE, "--currency", "EUR"),
        ("missing.yaml",),
        (*PER_UNIT, "--events", __file__),
    ],
)
def test_flags_that_do_not_fit_together_are_wrong_usage(tallybook: Run, words: tuple[str, ...]) -> None:
    assert tallybook("price", *words)[0] == 2


def test_prices_and_scenarios_need_no_server_and_none_of_its_clients() -> None:
    scenario, price = ("scenario", "run", str(EXAMPLES / "money-yen.scenario")), ("price", *PER_UNIT, "-q", "1")
    program = (
        "import sys; from services.cli import main\n"
        f"code = main({scenario}) or main({price})\n"
        "found = {'confluent_kafka', 'psycopg', 'redis', 'fastapi', 'fastavro'} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found or code else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
