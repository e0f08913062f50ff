"""docker-compose.yml runs the same system as `tallybook up`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from infra.settings import Settings
from services.cli_run import MODULES
from services.supervisor import PREPARE, SERVERS, SERVICES

ROOT = Path(__file__).parents[2]


def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


def test_one_container_for_each_server_and_process() -> None:
    assert set(compose()["services"]) == {*SERVERS, PREPARE, *SERVICES}


def test_every_process_runs_under_its_own_name_and_after_the_preparations() -> None:
    for name in SERVICES:
        service = compose()["services"][name]
        assert service["command"] == ["run", name]
        assert PREPARE in service["depends_on"]


def test_everything_that_stays_has_a_health_check() -> None:
    for name in (*SERVERS, *SERVICES):
        assert compose()["services"][name]["healthcheck"]["test"], name


def test_the_containers_set_only_settings_that_exist() -> None:
    known = {f"TALLYBOOK_{name.upper()}" for name in Settings.model_fields}
    for name in (PREPARE, *SERVICES):
        assert set(compose()["services"][name]["environment"]) <= known


def test_the_stack_and_the_containers_run_the_same_kafka() -> None:
    lock = (ROOT / "infra/local/kafka.lock").read_text()
    version = re.search(r" org\.apache\.kafka:kafka_2\.13:(\S+)", lock)
    assert version is not None
    assert compose()["services"]["kafka"]["image"] == f"apache/kafka:{version[1]}"


def test_every_process_that_the_supervisor_runs_can_be_run_by_name() -> None:
    assert {PREPARE, *SERVICES} == set(MODULES)
