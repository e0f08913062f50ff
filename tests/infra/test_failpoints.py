"""A failpoint does nothing until it is armed, and then what was asked, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import failpoints
from infra.errors import Misconfigured
from infra.failpoints import FailpointReached, failpoint

NAME = failpoints.FAILPOINTS[0]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.configure("")


def test_nothing_happens_unless_it_is_armed() -> None:
    failpoint(NAME)


def test_it_fires_at_the_given_pass_and_only_then() -> None:
    failpoints.configure(f"{NAME}=raise@3")
    failpoint(NAME)
    failpoint(NAME)
    with pytest.raises(FailpointReached):
        failpoint(NAME)
    failpoint(NAME)


@pytest.mark.parametrize("spec", ["handler.nowhere=kill", NAME, f"{NAME}=explode", f"{NAME}=kill@0", f"{NAME}=pause:"])
def test_a_bad_specification_is_refused(spec: str) -> None:
    with pytest.raises(Misconfigured, match="TALLYBOOK_FAILPOINT"):
        failpoints.configure(spec)


def test_a_kill_happens_once_per_data_folder(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from infra import failpoints\n"
        f"failpoints.configure('{NAME}=kill', Path(sys.argv[1]))\n"
        f"failpoints.failpoint('{NAME}')"
    )
    runs = [subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=os.environ, check=False) for _ in "12"]
    assert [run.returncode for run in runs] == [-signal.SIGKILL, 0]
