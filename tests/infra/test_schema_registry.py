"""Messages framed by a registry's ids, with a registry on real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infra.errors import Misconfigured, Transient
from infra.schema_registry import SchemaRegistry
from schemas.codec import Codec
from schemas.released import bundled
from services.cli import main
from tests.schemas.test_codec import EVENT


class Registry(ThreadingHTTPServer):
    """As much of Confluent's REST dialect as messages need."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.schemas: list[tuple[str, Any]] = []
        self.compatibility: dict[str, str] = {}
        self.authorization: set[str | None] = set()
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://user:p%40ss@127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Ids count from 1."""

    server: Registry

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        number = int(self.path.removeprefix("/schemas/ids/"))
        if self.server.broken:
            self.answer(503, {"message": "later"})
        elif 0 < number <= len(self.server.schemas):
            self.answer(200, {"schema": json.dumps(self.server.schemas[number - 1][1])})
        else:
            self.answer(404, {"error_code": 40403})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.compatibility[self.path.removeprefix("/config/")] = body["compatibility"]
        self.answer(200, body)

    def do_POST(self) -> None:
        self.server.authorization.add(self.headers["Authorization"])
        schema = json.loads(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"])
        subject = self.path.split("/")[2]
        if (subject, schema) not in self.server.schemas:
            if not self.path.endswith("/versions"):
                self.answer(404, {"error_code": 40403})
                return
            self.server.schemas.append((subject, schema))
        self.answer(200, {"id": self.server.schemas.index((subject, schema)) + 1})


@pytest.fixture
def server() -> Iterator[Registry]:
    with Registry() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_registered_message_is_written_with_its_id_and_read_anywhere(server: Registry) -> None:
    registry = SchemaRegistry(server.url)
    for each in bundled():
        registry.register(each.full_name, each.schema)
    assert set(server.compatibility.values()) == {"FULL_TRANSITIVE"}
    assert server.authorization == {"Basic dXNlcjpwQHNz"}
    value = Codec(registry=registry).encode_event(EVENT)
    assert value[0] == 0
    assert Codec(registry=SchemaRegistry(server.url)).decode_event(value) == EVENT


def test_a_producer_registers_nothing_by_itself(server: Registry) -> None:
    with pytest.raises(
        Misconfigured, match=r"lacks tallybook\.events\.ClockAdvanced: run `tallybook schemas register`"
    ):
        Codec(registry=SchemaRegistry(server.url)).encode_event(EVENT)
    assert server.schemas == []


def test_an_unreachable_registry_is_no_reason_to_set_a_message_aside(server: Registry) -> None:
    server.broken = True
    with pytest.raises(Transient, match="503"):
        Codec(registry=SchemaRegistry(server.url)).decode_event(b"\0\0\0\0\1value")
    with pytest.raises(Transient, match="schema registry, GET /schemas/ids/1"):
        SchemaRegistry("http://127.0.0.1:1").schema_of(1)


@pytest.mark.parametrize("url", ["registry:8081", "ftp://registry", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="TALLYBOOK_SCHEMA_REGISTRY"):
        SchemaRegistry(url)


def test_registering_from_the_command_line(
    server: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALLYBOOK_SCHEMA_REGISTRY", server.url)
    assert main(["schemas", "register", "--dry-run"]) == 0
    assert "would register  tallybook.events.ClockAdvanced.1" in capsys.readouterr().out
    assert server.schemas == []
    assert main(["schemas", "register", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(server.schemas) == len(bundled())


def test_registering_without_a_registry_names_the_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemas", "register"]) == 78
    assert "TALLYBOOK_SCHEMA_REGISTRY" in capsys.readouterr().err
