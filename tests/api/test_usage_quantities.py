"""Quantities over HTTP, and by the command line: customers told apart come in pages, and nobody else's are on them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest

from projections import usage_query
from tests.api.edge import BOOK, Client
from tests.api.test_usage_reads import Counting, usage
from tests.cli.test_commands import runner
from tests.stack import Stack
from tests.usage.making import batch, control, event

__all__ = ["usage"]
NAMES = ("c1", "c10", "c2", "a", "B")


def test_quantities_by_window_customer_and_dimension(usage: Counting, other: Client) -> None:
    usage.send("e1", "e2", bytes="1.5")
    usage.send("e3", bytes="4", customer="c2")
    usage.apply()
    start = quote((usage.began - timedelta(hours=2)).isoformat())
    answer = usage.client.get(f"/v1/usage?meter=bytes&from={start}&by=customer")
    assert answer.status_code == 200, answer.text
    rows = [(each["customer"], each["quantity"], each["events"]) for each in answer.json()["data"]]
    assert rows == [("c1", "3", 2), ("c2", "4", 1)]
    daily = usage.client.get(f"/v1/usage?meter=calls&from={start}&window=day&zone=Asia/Kathmandu").json()
    assert sum(each["events"] for each in daily["data"]) == 3
    assert other.get(f"/v1/usage?meter=calls&from={start}").json()["code"] == "unknown_meter"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("from=2026-01-01T00:00:00Z", 422, "missing_field"),
        ("meter=calls", 422, "missing_field"),
        ("meter=nothing&from=2026-01-01T00:00:00Z", 422, "unknown_meter"),
        ("meter=calls&from=2026-01-01", 422, "invalid_time"),
        ("meter=calls&from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", 422, "end_before_start"),
        ("meter=calls&from=2026-01-01T00:00:00Z&window=fortnight", 422, "invalid_value"),
        ("meter=calls&from=2026-01-01T00:00:00Z&zone=Mars/Base", 422, "unknown_zone"),
        ("meter=calls&from=2026-01-01T00:00:00Z&by=colour", 422, "unknown_dimension"),
        ("meter=calls&from=2026-01-01T00:00:00Z&where=colour", 422, "invalid_value"),
        ("meter=calls&from=2026-01-01T00:00:00Z&to=2026-02-01T00:00:00Z&window=minute", 422, "too_many_windows"),
        ("meter=calls&from=2026-01-01T00:00:00Z&metre=x", 422, "unknown_parameter"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(usage: Counting, query: str, status: int, code: str) -> None:
    usage.apply()
    answer = usage.client.get(f"/v1/usage?{query}")
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def fill(usage: Counting, other: Client) -> str:
    """Two events of each of `NAMES` within the last hours, one of an old customer; the others have customers, too.

    Returns the question for all of them.
    """
    for name in NAMES:
        usage.send(f"{name}-1", f"{name}-2", customer=name, bytes="1.5")
    usage.send("old", customer="gone", at=usage.began - timedelta(days=20))
    usage.log.append(control(meters=BOOK.meters, tenant=other.tenant), key=other.tenant.encode())
    theirs = event("theirs", usage.began, type="call", customer="stranger")
    usage.log.append(batch(theirs, tenant=other.tenant), key=other.tenant.encode(), at=usage.edge.parts.clock.now())
    usage.apply()
    start = quote((usage.began - timedelta(hours=2)).isoformat())
    return f"/v1/usage?meter=bytes&from={start}&by=customer"


def followed(client: Client, question: str, limit: int) -> list[dict[str, Any]]:
    """Each page."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = client.get(f"{question}&limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        cursor = found[-1]["next_cursor"]
    return found


def test_pages_of_customers_are_the_whole_answer(usage: Counting, other: Client) -> None:
    question = fill(usage, other)
    until = f"&to={quote((usage.began + timedelta(minutes=30)).isoformat())}"
    for more in (until, f"{until}&window=hour&zone=Asia/Kathmandu"):
        (whole,) = followed(usage.client, question + more, 200)
        assert {row["customer"] for row in whole["data"]} == set(NAMES)
        assert sum(row["events"] for row in whole["data"]) == 2 * len(NAMES)
        for limit in (1, 2, 5):
            pages = followed(usage.client, question + more, limit)
            assert len(pages) == -(-(len(NAMES) + 1) // limit)
            assert all(len({row["customer"] for row in page["data"]}) <= limit for page in pages)
            rows = [row for page in pages for row in page["data"]]
            assert sorted(rows, key=lambda row: str(row["start"])) == whole["data"]
            assert sum(not page["data"] for page in pages) == (limit in (1, 5)), "who has no usage now has a place"
    up_to_now = followed(usage.client, question, 1)
    assert len({page["end"] for page in up_to_now}) == 1, "the same moment on each page"
    (theirs,) = followed(other, question.replace("bytes", "calls"), 50)
    assert [row["customer"] for row in theirs["data"]] == ["stranger"]


def test_fifty_customers_are_a_page_unless_it_is_said(usage: Counting) -> None:
    for number in range(51):
        usage.send(f"e{number}", customer=f"c{number}")
    usage.apply()
    start = quote((usage.began - timedelta(hours=2)).isoformat())
    page = usage.client.get(f"/v1/usage?meter=calls&from={start}&by=customer").json()
    assert (len(page["data"]), page["next_cursor"] is None) == (50, False)
    together = usage.client.get(f"/v1/usage?meter=calls&from={start}&limit=1").json()
    assert ([row["events"] for row in together["data"]], together["next_cursor"]) == ([51], None)
    one = usage.client.get(f"/v1/usage?meter=calls&from={start}&limit=1&by=customer&customer=c7").json()
    assert ([row["customer"] for row in one["data"]], one["next_cursor"]) == (["c7"], None)


def test_a_cursor_of_another_question_is_refused(usage: Counting, other: Client) -> None:
    question = fill(usage, other)
    cursor = usage.client.get(f"{question}&limit=1").json()["next_cursor"]
    assert usage.client.get(f"{question}&limit=2&cursor={cursor}").status_code == 200
    elsewhere = [question.replace("bytes", "calls"), question.replace("&by=customer", "")]
    elsewhere += [question + more for more in ("&window=day", "&zone=Asia/Kolkata", "&customer=c1", "&where=a:b")]
    asked = [(usage.client, f"{each}&limit=1&cursor={cursor}") for each in elsewhere]
    asked += [(other, f"{question}&limit=1&cursor={cursor}")]
    asked += [(usage.client, f"{question}&cursor={text}") for text in ("c1", "", "%00", "x" * 64, cursor[:-4])]
    for client, path in asked:
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor"), path


@pytest.mark.parametrize("limit", ["0", "-1", "201", "x", "1.5"])
def test_a_page_of_customers_has_a_size(usage: Counting, limit: str) -> None:
    answer = usage.client.get(f"/v1/usage?meter=calls&from=2026-01-01T00:00:00Z&by=customer&limit={limit}")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "limit")


def test_the_command_line_prints_every_customer(
    usage: Counting,
    other: Client,
    stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(usage, other)
    monkeypatch.setattr(usage_query, "PAGE", 2)
    ours = {
        name: value for name, value in stack.environment(usage.edge.settings).items() if name.startswith("TALLYBOOK_")
    }
    tallybook = runner(ours, monkeypatch, capsys)
    start = (usage.began - timedelta(hours=2)).isoformat()
    asked = ("usage", "query", "bytes", "--from", start, "--by", "customer", "--tenant", usage.client.tenant)
    code, out, err = tallybook(*asked, "--json")
    assert code == 0, err
    assert [(row["quantity"], row["events"]) for row in json.loads(out)] == [("3", 2)] * len(NAMES)
    assert {row["customer"] for row in json.loads(out)} == set(NAMES)
    code, out, _ = tallybook(*asked)
    assert (code, len(out.splitlines())) == (0, len(NAMES) + 1)
