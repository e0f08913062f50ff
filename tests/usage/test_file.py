"""Usage from files: every faulty line is named, and takes no other with it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.kafka import KafkaConfig, scan
from schemas.codec import decode_usage
from services.usage_file import Fault, Format, format_of, read
from tallybook_sdk import UsageEvent
from tests.stack import Stack

TIME = "2026-03-10T12:00:00Z"
HEADER = "id,type,customer,time,bytes,region\n"


def faults(form: Format, text: bytes) -> list[tuple[int, str]]:
    made = [each.event for each in read(io.BytesIO(text), form, "f")]
    return [(each.line, each.field) for each in made if isinstance(each, Fault)]


def events(form: Format, text: bytes) -> list[UsageEvent]:
    return [each.event for each in read(io.BytesIO(text), form, "f") if isinstance(each.event, UsageEvent)]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (f",api,c,{TIME},1,eu", "id"),
        (f"1,,c,{TIME},1,eu", "type"),
        (f"1,api,,{TIME},1,eu", "customer"),
        ("1,api,c,,1,eu", "time"),
        ("1,api,c,2026-03-10T12:00:00,1,eu", "time"),
        ("1,api,c,2026-02-30T12:00:00Z,1,eu", "time"),
        ("1,api,c,yesterday,1,eu", "time"),
        (f"1,api,c,{TIME},1", ""),
        (f"1,api,c,{TIME},1,eu,more", ""),
        (f'"1,api,c,{TIME},1,eu', ""),
        (f"{'x' * 129},api,c,{TIME},1,eu", "id"),
        (f"1,api,c,{TIME},1,{'x' * 257}", "properties.region"),
    ],
)
def test_a_faulty_line_of_csv_is_named(line: str, field: str) -> None:
    text = f"{HEADER}a,api,c,{TIME},1,eu\n{line}\nb,api,c,{TIME},2,\n".encode()
    assert faults(Format.CSV, text) == [(3, field)]
    assert [(each.id, each.properties) for each in events(Format.CSV, text)] == [
        ("a", {"bytes": "1", "region": "eu"}),
        ("b", {"bytes": "2"}),
    ]


@pytest.mark.parametrize(
    ("header", "field"),
    [(b"type,customer,time\n", "id"), (b"id,id,type,customer,time\n", ""), (b"", "id"), (b'"id\n', "")],
)
def test_a_header_that_does_not_fit_is_the_only_fault(header: bytes, field: str) -> None:
    assert faults(Format.CSV, header + b"1,2,3,4\n") == [(1, field)]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"id": "1"', ""),
        ("[]", ""),
        ("null", ""),
        (f'{{"id": "1", "id": "2", "type": "api", "customer": "c", "time": "{TIME}"}}', ""),
        (f'{{"id": "1", "type": "api", "customer": "c", "time": "{TIME}", "properties": {{"n": NaN}}}}', ""),
        (f'{{"id": "1", "type": "api", "customer": "c", "time": "{TIME}", "propertys": {{}}}}', "propertys"),
        (f'{{"id": "1", "type": "api", "customer": "c", "time": "{TIME}", "properties": [1]}}', "properties"),
        (f'{{"id": "1", "type": "a", "customer": "c", "time": "{TIME}", "properties": {{"n": true}}}}', "properties.n"),
        (f'{{"id": 1, "type": "api", "customer": "c", "time": "{TIME}"}}', "id"),
        ('{"id": "1", "type": "api", "customer": "c", "time": 1773144000}', "time"),
        ('{"type": "api", "customer": "c", "time": "2026-03-10T12:00:00Z"}', "id"),
        ("[" * 100_000, ""),
    ],
)
def test_a_faulty_line_of_json_is_named(line: str, field: str) -> None:
    good = json.dumps({"id": "a", "type": "api", "customer": "c", "time": TIME, "properties": {"n": 1}})
    text = f"{good}\n\n{line}\n{good}\n".encode()
    assert faults(Format.JSONL, text) == [(3, field)]
    assert len(events(Format.JSONL, text)) == 2


def test_numbers_of_json_stay_exact() -> None:
    properties = '{"a": 0.1, "b": 12345678901234567890.5, "c": 3}'
    line = f'{{"id": "1", "type": "api", "customer": "c", "time": "{TIME}", "properties": {properties}}}'
    (event,) = events(Format.JSONL, line.encode())
    assert {name: str(value) for name, value in event.properties.items()} == {
        "a": "0.1", "b": "12345678901234567890.5", "c": "3"
    }  # fmt: skip


def test_a_byte_order_mark_and_latin_1_do_not_hide() -> None:
    lines = (b"id,type,customer,time,name", b"1,api,c,2026-03-10T12Z,caf\xc3\xa9", b"2,api,c,2026-03-10T12Z,caf\xe9")
    text = b"\xef\xbb\xbf" + b"\n".join(lines)
    assert faults(Format.CSV, text) == [(3, "properties.'name'")]
    assert [each.properties for each in events(Format.CSV, text)] == [{"name": "café"}]


def test_the_suffix_tells_the_format() -> None:
    assert [format_of(Path(name)) for name in ("a.csv", "b.JSONL", "c.ndjson", "d.txt")] == [
        Format.CSV, Format.JSONL, Format.JSONL, None
    ]  # fmt: skip


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = (sys.executable, "-m", "services.cli", "usage", "send", *arguments)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_dry_run_sends_nothing_and_needs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{HEADER}1,api,c,{TIME},1,eu\n,api,c,{TIME},1,eu\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TALLYBOOK_")}
    done = run(clean, str(path), "--tenant", "t", "--dry-run")
    assert (done.returncode, done.stdout) == (1, "1 events would be sent, 1 lines have a fault\n")
    assert done.stderr == "line 3: id: is missing\n"
    unknown = run(clean, str(path.rename(tmp_path / "a.txt")), "--tenant", "t", "--dry-run")
    assert unknown.returncode == 2


def test_a_broker_that_is_away_is_told_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{HEADER}1,api,c,{TIME},1,eu\n")
    done = run({**os.environ, "TALLYBOOK_KAFKA": "127.0.0.1:1"}, str(path), "--tenant", "t")
    assert done.returncode == 69
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_goes_to_kafka_through_the_sdk(stack: Stack, tenant: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": str(n), "type": "api", "customer": "c", "time": TIME, "properties": {"n": n}} for n in range(1200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "x"}]))
    done = run(stack.environment(), str(path), "--tenant", tenant, "--source", "import", "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert (told["valid"], told["delivered"], told["not_delivered"]) == (1200, 1200, {})
    assert [(each["line"], each["field"]) for each in told["faults"]] == [(1201, "type")]
    config = KafkaConfig.of(stack.settings)
    starts = dict.fromkeys(range(stack.settings.usage_partitions), 0)
    recorded = [
        decode_usage(record.value)
        for records in scan(config, "usage.events", starts)
        for record in records
        if record.key == tenant.encode()
    ]
    assert [each.id for batch in recorded for each in batch.events] == [str(n) for n in range(1200)]  # type: ignore[union-attr]
