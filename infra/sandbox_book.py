"""The sandbox provider's memory: payment intents, the answers saved under idempotency keys, and its book of charges.

A charge and the answer saved under its key are one durable write, so whatever dies, a repeated request finds either
both or neither. The rules of keys are Stripe's: the first answer is repeated for a day, declines and errors too; other
parameters under the same key are refused; what was refused before it began is not saved.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

KEY_LIFE = timedelta(hours=24)  # "can be removed once at least 24 hours old": Stripe, "Idempotent requests"

Params = Mapping[str, str]
Json = dict[str, Any]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS payment_intent (
    sequence        INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT    NOT NULL UNIQUE,
    payer           TEXT    NOT NULL,   -- tenant and customer, or the id itself where none is named
    amount          INTEGER NOT NULL CHECK (amount > 0),
    currency        TEXT    NOT NULL,
    payment_method  TEXT    NOT NULL,
    status          TEXT    NOT NULL,
    decline_code    TEXT,
    metadata        TEXT    NOT NULL,
    key             TEXT,
    created         INTEGER NOT NULL    -- seconds since 1970
);
CREATE INDEX IF NOT EXISTS payment_intent_by_payer ON payment_intent (payer);
CREATE TABLE IF NOT EXISTS saved_answer (
    key        TEXT    PRIMARY KEY,
    request    TEXT    NOT NULL,        -- SHA-256 of the parameters
    status     INTEGER NOT NULL,
    body       TEXT    NOT NULL,
    saved_at   INTEGER NOT NULL
);
"""

_DECLINES = {
    "pm_card_chargeDeclined": "generic_decline",
    "pm_card_chargeDeclinedInsufficientFunds": "insufficient_funds",
    "pm_card_chargeDeclinedExpiredCard": "expired_card",
    "pm_card_chargeDeclinedLostCard": "lost_card",
    "pm_card_chargeDeclinedStolenCard": "stolen_card",
    "pm_card_authenticationRequired": "authentication_required",
}
_PAYS = ("pm_card_visa", "pm_card_mastercard", "pm_card_lostAnswer", "pm_card_slow")
DECLINES_ONCE = "pm_card_declinesOnceInsufficientFunds"
CARDS = (*_PAYS, DECLINES_ONCE, *_DECLINES)

_ALLOWED = frozenset(
    {"amount", "currency", "confirm", "off_session", "payment_method", "customer", "description"}
    | {"automatic_payment_methods[enabled]", "automatic_payment_methods[allow_redirects]"}
)
_CLAUSE = re.compile(r"""metadata\[["'](\w+)["']\]\s*:\s*["']([^"']*)["']\Z""")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of one HTTP answer."""

    status: int
    body: Json
    replayed: bool = False
    """An earlier answer, repeated."""


class Book:
    """Payment intents and saved answers in one SQLite file, written through to the disk before anything is answered."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._now = now
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._db.close()

    def saved(self, key: str, params: Params) -> Answer | None:
        """The first answer under `key`, while the key is remembered; a refusal if it was for other parameters."""
        with self._lock:
            horizon = int((self._now() - KEY_LIFE).timestamp())
            row = self._db.execute(
                "SELECT request, status, body FROM saved_answer WHERE key = ? AND saved_at > ?", (key, horizon)
            ).fetchone()
        if row is None:
            return None
        if row["request"] != _fingerprint(params):
            told = "Keys for idempotent requests can only be used with the same parameters they were first used with."
            return _error(400, "idempotency_error", "idempotency_key_in_use", told)
        return Answer(row["status"], json.loads(row["body"]), replayed=True)

    def charge(self, key: str | None, params: Params, *, fail: bool = False, lose: bool = False) -> Answer:
        """Create and confirm a payment intent, and save the answer under `key`, in one durable write.

        `fail` saves a server error instead of a charge, `lose` a server error beside a charge that did happen.
        """
        refused = _refusal(params)
        if refused is not None:
            return refused
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                answer = _broken() if fail else self._confirmed(key, params)
                if lose:
                    answer = _broken()
                if key is not None:
                    self._save(key, params, answer)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        return answer

    def retrieve(self, intent_id: str) -> Answer:
        """The payment intent `intent_id`."""
        with self._lock:
            row = self._db.execute("SELECT * FROM payment_intent WHERE id = ?", (intent_id,)).fetchone()
        if row is None:
            return _error(404, "invalid_request_error", "resource_missing", f"No such payment_intent: '{intent_id}'")
        return Answer(200, _intent(row))

    def search(self, query: str) -> Answer:
        """Payment intents whose metadata meets every clause of `query`, newest first."""
        wanted = []
        for clause in query.split(" AND "):
            match = _CLAUSE.match(clause.strip())
            if match is None:
                return _error(400, "invalid_request_error", "parameter_invalid", f"cannot read the clause {clause!r}")
            wanted.append((f"$.{match[1]}", match[2]))
        where = " AND ".join("json_extract(metadata, ?) = ?" for _ in wanted)
        with self._lock:
            rows = self._db.execute(
                f"SELECT * FROM payment_intent WHERE {where} ORDER BY sequence DESC LIMIT 100",
                [value for clause in wanted for value in clause],
            ).fetchall()
        found = [_intent(row) for row in rows]
        return Answer(200, {"object": "search_result", "data": found, "has_more": False, "url": "/v1/payment_intents"})

    def charges(self) -> list[Json]:
        """Every successful charge there ever was, oldest first: the witness against charging twice."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM payment_intent WHERE status = 'succeeded' ORDER BY sequence")
            return [
                {name: row[name] for name in ("id", "amount", "currency", "key", "created")}
                | {"metadata": json.loads(row["metadata"])}
                for row in rows
            ]

    def _confirmed(self, key: str | None, params: Params) -> Answer:
        metadata = {name[9:-1]: value for name, value in params.items() if name.startswith("metadata[")}
        made = self._db.execute("SELECT coalesce(max(sequence), 0) + 1 FROM payment_intent").fetchone()[0]
        intent_id = f"pi_sandbox_{made:010d}"
        payer = f"{metadata.get('tenant_id', '')}/{metadata['customer_id']}" if "customer_id" in metadata else intent_id
        code = self._decline(params["payment_method"], payer)
        self._db.execute(
            "INSERT INTO payment_intent (id, payer, amount, currency, payment_method, status, decline_code, metadata,"
            " key, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                intent_id,
                payer,
                int(params["amount"]),
                params["currency"].lower(),
                params["payment_method"],
                "succeeded" if code is None else "requires_payment_method",
                code,
                json.dumps(metadata),
                key,
                int(self._now().timestamp()),
            ),
        )
        intent = _intent(self._db.execute("SELECT * FROM payment_intent WHERE id = ?", (intent_id,)).fetchone())
        if code is None:
            return Answer(200, intent)
        return Answer(402, {"error": {**intent["last_payment_error"], "payment_intent": intent}})

    def _decline(self, card: str, payer: str) -> str | None:
        """Why `card` declines, or None. A card that declines once does so on its payer's very first payment."""
        if card == DECLINES_ONCE:
            known = self._db.execute("SELECT 1 FROM payment_intent WHERE payer = ?", (payer,)).fetchone()
            return None if known else "insufficient_funds"
        return _DECLINES.get(card)

    def _save(self, key: str, params: Params, answer: Answer) -> None:
        self._db.execute(
            "INSERT INTO saved_answer (key, request, status, body, saved_at) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET request = excluded.request, status = excluded.status,"
            " body = excluded.body, saved_at = excluded.saved_at",
            (key, _fingerprint(params), answer.status, json.dumps(answer.body), int(self._now().timestamp())),
        )


def _refusal(params: Params) -> Answer | None:
    """What is wrong with a request before anything of it is done, or None."""
    for name in params:
        if name not in _ALLOWED and not name.startswith("metadata["):
            return _error(400, "invalid_request_error", "parameter_unknown", f"Received unknown parameter: {name}")
    for name in ("amount", "currency", "payment_method", "confirm"):
        if not params.get(name):
            return _error(400, "invalid_request_error", "parameter_missing", f"Missing required param: {name}.")
    amount = params["amount"]
    if not amount.isascii() or not amount.isdigit() or not 0 < int(amount) < 10**12:
        return _error(400, "invalid_request_error", "parameter_invalid_integer", f"Invalid integer: {amount[:40]}")
    if not re.fullmatch(r"[A-Za-z]{3}", params["currency"]):
        return _error(400, "invalid_request_error", "invalid_currency", "allowed is a code of three letters")
    if params["confirm"] != "true":
        return _error(400, "invalid_request_error", "parameter_invalid", "the sandbox only confirms at once")
    if params["payment_method"] not in CARDS:
        told = f"No such PaymentMethod: '{params['payment_method']}'; the sandbox knows: {', '.join(CARDS)}"
        return _error(400, "invalid_request_error", "resource_missing", told, param="payment_method")
    return None


def _intent(row: sqlite3.Row) -> Json:
    succeeded = row["status"] == "succeeded"
    error = None
    if row["decline_code"] is not None:
        specific = row["decline_code"] in ("expired_card", "authentication_required")
        error = {
            "type": "card_error",
            "code": row["decline_code"] if specific else "card_declined",
            "decline_code": row["decline_code"],
            "message": "Your card was declined.",
        }
    return {
        "id": row["id"],
        "object": "payment_intent",
        "amount": row["amount"],
        "amount_received": row["amount"] if succeeded else 0,
        "currency": row["currency"],
        "status": row["status"],
        "payment_method": row["payment_method"],
        "last_payment_error": error,
        "metadata": json.loads(row["metadata"]),
        "created": row["created"],
        "livemode": False,
    }


def _broken() -> Answer:
    return _error(500, "api_error", "", "An unknown error occurred.")


def _error(status: int, kind: str, code: str, message: str, **more: str) -> Answer:
    return Answer(status, {"error": {"type": kind, "code": code, "message": message, **more}})


def _fingerprint(params: Params) -> str:
    return hashlib.sha256(json.dumps(sorted(params.items())).encode()).hexdigest()
