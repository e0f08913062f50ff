"""The stage of the demonstration: a data folder of its own, and the commands a person would type."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import Conflict, Transient
from infra.settings import PREFIX, Settings
from services import supervisor

MARK = "demonstration"
"""File in a data folder which says that it may be thrown away."""
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Stage:
    """Runs `tallybook` commands on one data folder, kills processes, waits for conditions."""

    data: Path
    say: Callable[[str], None]

    def clear(self) -> None:
        """Begin with an empty data folder.

        Raises:
            Conflict: the folder holds something else than an earlier demonstration.
        """
        if self.data.exists() and not (self.data / MARK).exists():
            raise Conflict(f"{self.data} holds other data; choose another folder with --data")
        if self.data.exists():
            self.command("down", quiet=True)
            shutil.rmtree(self.data)
        self.data.mkdir(parents=True)
        (self.data / MARK).touch()

    def command(self, *words: str, quiet: bool = False, codes: tuple[int, ...] = (0,)) -> str:
        """What `tallybook WORDS` prints. Messages on its error stream go to ours.

        Raises:
            Transient: it ended with another code than `codes`.
        """
        if not quiet:
            self.say(f"$ tallybook {' '.join(words)}")
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", *words],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
            text=True,
        )
        if done.returncode not in codes:
            raise Transient(f"`tallybook {' '.join(words)}` ended with code {done.returncode}: {done.stdout[-500:]}")
        return done.stdout

    def settings(self) -> Settings:
        """The settings of the running stack."""
        return Settings.from_env(self._environment())

    def kill(self, process: str) -> None:
        """SIGKILL a process and wait until the supervisor has another one at work.

        Raises:
            Transient: it was not restarted within a minute.
        """
        before = self._child(process)
        self.say(f"  kill -9 {process} (pid {before['pid']})")
        os.kill(before["pid"], signal.SIGKILL)
        started = time.monotonic()
        self.wait(
            lambda: (
                self._child(process)["pid"] not in (None, before["pid"]) and self._child(process)["state"] == "healthy"
            ),
            within_s=60,
            what=f"{process} to be restarted",
        )
        self.say(f"  {process} is back after {time.monotonic() - started:.1f} s (pid {self._child(process)['pid']})")

    def wait(self, condition: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Until `condition` holds.

        Raises:
            Transient: it does not within `within_s` seconds.
        """
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise Transient(f"waited {within_s:.0f} s for {what}; see the logs in {self.data / 'logs'}")
            time.sleep(_POLL_S)

    def _child(self, process: str) -> dict[str, Any]:
        child: dict[str, Any] = json.loads(json.dumps(supervisor.read_state(self.data)["processes"][process]))
        return child

    def _environment(self) -> dict[str, str]:
        return {**os.environ, f"{PREFIX}DATA": str(self.data)}
