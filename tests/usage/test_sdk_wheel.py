"""The SDK's wheel: typed, small, and in need of nothing but confluent-kafka."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

SDK = Path(__file__).parents[2] / "sdk"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=SDK, check=True, capture_output=True, timeout=120)
    (made,) = folder.glob("*.whl")
    return made


def test_it_holds_the_modules_their_types_and_the_schema(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("tallybook_sdk/")}
    sources = SDK / "src" / "tallybook_sdk"
    assert names == {f"tallybook_sdk/{path.name}" for path in sources.iterdir() if path.is_file()}
    assert {"tallybook_sdk/py.typed", "tallybook_sdk/usage_batch.avsc"} <= names
    assert wheel.stat().st_size < 100_000


def test_it_needs_confluent_kafka_alone(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    needs = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist") or []
    assert [each for each in needs if "extra ==" not in each] == ["confluent-kafka<3,>=2.16"]
    assert [each for each in needs if "extra ==" in each] == ["redis<9,>=6; extra == 'entitlements'"]


def test_it_is_imported_where_nothing_else_is_installed(wheel: Path) -> None:
    program = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import tallybook_sdk, tallybook_sdk.entitlements\n"
        "assert tallybook_sdk.__file__.startswith(sys.argv[1]), tallybook_sdk.__file__\n"
        "known = {'tallybook_sdk', 'confluent_kafka'} | set(sys.stdlib_module_names)\n"
        "others = {name.partition('.')[0] for name in sys.modules} - known\n"
        "print(' '.join(sorted(each for each in others if 'site-packages' in str(sys.modules[each].__spec__))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(wheel)], capture_output=True, text=True, check=True)
    taken = set(done.stdout.split())
    assert not taken & {"fastavro", "redis", "uuid_utils", "httpx", "requests", "aiokafka", "pydantic"}
