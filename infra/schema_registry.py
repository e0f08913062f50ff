"""A schema registry that speaks Confluent's REST dialect (Confluent, Karapace, Apicurio, Redpanda).

Messages only look schemas up; registering is a command of its own, so no producer can add one by accident.
The subject of a record is its full name, such as `tallybook.events.InvoiceFinalized`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from infra.errors import Misconfigured, Transient

COMPATIBILITY = "FULL_TRANSITIVE"
_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
_TIMEOUT_S = 10


class SchemaRegistry:
    """The registry at a URL, which may carry `user:password@`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Misconfigured("TALLYBOOK_SCHEMA_REGISTRY is not a URL such as https://registry:8081")
        host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        self._base = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        self._headers = {"Content-Type": _MEDIA_TYPE, "Accept": _MEDIA_TYPE}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"

    def id_of(self, full_name: str, schema: Mapping[str, Any]) -> int:
        """The id under which `schema` is registered.

        Raises:
            Misconfigured: it is not registered.
            Transient: the registry does not answer.
        """
        found = self._call("POST", f"/subjects/{quote(full_name)}", {"schema": json.dumps(schema)})
        if found is None:
            raise Misconfigured(f"the schema registry lacks {full_name}: run `tallybook schemas register`")
        return int(found["id"])

    def schema_of(self, schema_id: int) -> Mapping[str, Any] | None:
        """The schema with that id; None if there is none, or none that is a record. Raises `Transient`."""
        found = self._call("GET", f"/schemas/ids/{schema_id}")
        schema = None if found is None else json.loads(found["schema"])
        return schema if isinstance(schema, dict) else None

    def register(self, full_name: str, schema: Mapping[str, Any]) -> int:
        """Make `schema` known, to be changed only in ways that every reader survives; its id.

        Raises:
            Misconfigured: the registry refuses it.
            Transient: the registry does not answer.
        """
        subject = quote(full_name)
        self._call("PUT", f"/config/{subject}", {"compatibility": COMPATIBILITY})
        found = self._call("POST", f"/subjects/{subject}/versions", {"schema": json.dumps(schema)})
        if found is None:
            raise Misconfigured(f"the schema registry does not take {full_name}")
        return int(found["id"])

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer; None for 404."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._base + path, data, self._headers, method=method)
        try:
            with urlopen(request, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)
        except HTTPError as e:
            if e.code == 404:
                return None
            said = e.read(500).decode(errors="replace")
            if e.code in (429, 500, 502, 503, 504):
                raise Transient(f"schema registry, {method} {path}: {e.code} {said}") from e
            raise Misconfigured(f"schema registry, {method} {path}: {e.code} {said}") from e
        except (URLError, TimeoutError, ConnectionError, ValueError) as e:
            raise Transient(f"schema registry, {method} {path}: {e}") from e
