"""What a figure was measured on: one line for the head of each benchmark's table."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_GIB = 1024**3


def description() -> str:
    """Processor, cores that this process may use, memory, system and Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()}"
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, {system}, Python {platform.python_version()}"


def busy() -> str:
    """How much else the machine does: its load average per core over the last minute."""
    return f"load {os.getloadavg()[0] / (os.cpu_count() or 1):.2f} per core"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
