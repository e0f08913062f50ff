"""Every knob of every process: one frozen value, validated whole and read once.

Sources, the later wins: defaults, the addresses of the running local stack (`DATA/state.json`), the TOML file named by
`TALLYBOOK_CONFIG`, the environment (`TALLYBOOK_` and the field's name in capitals). What is misspelt is refused.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from infra.errors import Misconfigured, Transient

PREFIX = "TALLYBOOK_"
STATE_FILE = "state.json"
"""Under the data folder: what the supervisor runs and where it answers."""

_OF_THE_TESTS = "TALLYBOOK_TEST_"
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?\Z")


def duration(text: object) -> object:
    """`1h30m`, `10s`, `250ms` as a timedelta. A bare number is refused: it has no unit."""
    if isinstance(text, timedelta):
        return text
    match = _DURATION.match(text) if isinstance(text, str) and text else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write it with units, as in 2d, 1h30m, 10s or 250ms")
    days, hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds)


Duration = Annotated[timedelta, BeforeValidator(duration)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseModel):
    """Every knob of every process, with its unit and its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    data: Path = Field(default=Path(".tallybook"), description="Folder of the local stack: data, logs, state.")
    cache: Path = Field(
        default=Path("~/.cache/tallybook"), description="Folder of what is downloaded once, shared by all data folders."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    failpoint: str = Field(default="", description="Faults to inject, for tests: NAME=kill|raise|pause:SECONDS[@N],...")

    kafka: str = Field(default="", description="Bootstrap servers, host:port[,host:port]. Empty: the local stack's.")
    kafka_security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = ""
    kafka_sasl_username: str = ""
    kafka_sasl_password: SecretStr = SecretStr("")
    kafka_ssl_ca: str = Field(default="", description="File with the certificates of the brokers' authority (PEM).")
    kafka_ssl_certificate: str = Field(default="", description="File with this client's certificate (PEM).")
    kafka_ssl_key: str = Field(default="", description="File with this client's key (PEM).")
    topic_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Put before each topic, group and transactional id, so that several systems share a cluster.",
    )
    billing_partitions: int = Field(default=6, ge=1, le=1000, description="Of billing.commands, .events, .results.")
    usage_partitions: int = Field(default=6, ge=1, le=1000, description="Of usage.events and usage.rejected.")
    topic_replication: int = Field(default=1, ge=1, le=7, description="Copies of each topic; 3 in production.")

    schema_registry: str = Field(
        default="",
        repr=False,
        description="URL of a schema registry (Confluent's REST). Empty: messages name their schema by fingerprint.",
    )

    postgres: str = Field(default="", repr=False, description="URL of the owner's role. Empty: the local stack's.")
    postgres_worker: str = Field(default="", repr=False, description="URL of tallybook_worker; default: derived.")
    postgres_api: str = Field(default="", repr=False, description="URL of tallybook_api; default: derived.")
    postgres_pooler: bool = Field(default=False, description="Behind a transaction-mode pooler: do not prepare.")
    statement_timeout: Duration = Field(default=timedelta(minutes=5), description="Longest statement of a worker.")
    api_statement_timeout: Duration = Field(default=timedelta(seconds=10), description="Longest statement of the API.")
    redis: str = Field(default="", repr=False, description="URL of Redis or Valkey. Empty: the local stack's.")

    payment_provider: Literal["sandbox", "stripe", "manual"] = Field(
        default="sandbox", description="Who collects from a customer that names no provider of its own."
    )
    sandbox: str = Field(default="", description="URL of the sandbox provider. Empty: the local stack's.")
    sandbox_host: str = "127.0.0.1"
    sandbox_port: Port = Field(default=0, description="Where the sandbox listens; 0: the local stack picks one.")
    stripe_key: SecretStr = SecretStr("")
    stripe_webhook_secret: SecretStr = SecretStr("")

    api_host: str = "127.0.0.1"
    api_port: Port = Field(default=0, description="Where the API listens; 0: the local stack picks one.")
    instance: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Name of this process among its like; a restart under it gets its partitions back at once.",
    )
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = Field(default=0, description="Where a process shows /metrics; 0: nowhere.")

    lease: Duration = Field(
        default=timedelta(seconds=60),
        description="How long a worker keeps an invoice job or a payment; longer than two calls of a provider take.",
    )
    scheduler_interval: Duration = Field(
        default=timedelta(milliseconds=250), description="How often is looked for periods that are over."
    )

    stall_timeout: Duration = Field(
        default=timedelta(seconds=60),
        description="A process that holds records and applies none for so long ends with code 70, to be restarted.",
    )
    start_timeout: Duration = Field(
        default=timedelta(minutes=3), description="How long `up` waits for everything to answer."
    )
    stop_timeout: Duration = Field(
        default=timedelta(seconds=10), description="From SIGTERM to SIGKILL for a process that does not end."
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str], *, running: bool = True) -> Settings:
        """The settings of this process; addresses that are not given are those of the running stack, if `running`.

        Raises:
            Misconfigured: a variable or key is unknown or has a bad value, or the configuration file cannot be read.
        """
        given = _from_file(env.get(f"{PREFIX}CONFIG")) | _from_variables(env)
        try:
            settings = cls(**_present(given))
            settings = cls(**{**(_addresses(settings.data) if running else {}), **_present(given)})
        except ValidationError as error:
            raise Misconfigured(_explain(error)) from error
        return settings.model_copy(
            update={"data": settings.data.expanduser().absolute(), "cache": settings.cache.expanduser().absolute()}
        )

    def require(self, name: str) -> str:
        """The address in field `name`.

        Raises:
            Transient: it is not given and no local stack runs on the data folder.
        """
        value = getattr(self, name)
        if not value:
            raise Transient(
                f"{name} is not running: start it with `tallybook up` (data folder {self.data}), "
                f"or name one in {PREFIX}{name.upper()}"
            )
        return str(value)

    def topic(self, name: str) -> str:
        """The name on the cluster of the topic, consumer group or transactional id `name`."""
        return self.topic_prefix + name

    def kafka_client(self) -> dict[str, str]:
        """What every librdkafka client of this process needs to reach the cluster."""
        given = {
            "bootstrap.servers": self.require("kafka"),
            "security.protocol": self.kafka_security_protocol,
            "sasl.mechanism": self.kafka_sasl_mechanism,
            "sasl.username": self.kafka_sasl_username,
            "sasl.password": self.kafka_sasl_password.get_secret_value(),
            "ssl.ca.location": self.kafka_ssl_ca,
            "ssl.certificate.location": self.kafka_ssl_certificate,
            "ssl.key.location": self.kafka_ssl_key,
        }
        return {name: value for name, value in given.items() if value}

    def redacted(self) -> dict[str, str]:
        """Field by field, for people: passwords and keys are masked."""
        shown = self.model_dump(mode="json")
        return {name: re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", str(value)) for name, value in shown.items()}


def _from_file(name: str | None) -> dict[str, Any]:
    if not name:
        return {}
    try:
        with Path(name).expanduser().open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise Misconfigured(f"{PREFIX}CONFIG: cannot read {name}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{PREFIX}CONFIG: {name} is not TOML: {error}") from error


def _from_variables(env: Mapping[str, str]) -> dict[str, Any]:
    known = {f"{PREFIX}{name.upper()}": name for name in Settings.model_fields}
    values: dict[str, Any] = {}
    for variable, value in env.items():
        if not variable.startswith(PREFIX) or variable.startswith(_OF_THE_TESTS) or variable == f"{PREFIX}CONFIG":
            continue
        if variable not in known:
            raise Misconfigured(f"{variable} is not a setting; `tallybook config show` lists them")
        values[known[variable]] = value
    return values


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty texts: `TALLYBOOK_KAFKA=` means not given."""
    return {name: value for name, value in given.items() if value != ""}


def _addresses(data: Path) -> dict[str, Any]:
    """Where the local stack on `data` answers; empty if none was started."""
    try:
        state = json.loads((data.expanduser() / STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    addresses = state.get("addresses", {})
    return {name: at for name, at in addresses.items() if name in Settings.model_fields}


def _explain(error: ValidationError) -> str:
    """One line per fault, naming the setting, without the value of a secret."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False):
        name = ".".join(map(str, fault["loc"]))
        known = name in Settings.model_fields
        said = fault["msg"].removeprefix("Value error, ") if known else "is not a setting"
        lines.append(f"{PREFIX}{name.upper()}: {said}" if known else f"configuration file: {name} {said}")
    return "\n".join(lines)
