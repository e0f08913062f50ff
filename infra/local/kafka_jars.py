"""The jars of Apache Kafka: named and hashed in `kafka.lock`, downloaded once by `jgo`, verified at each start.

`python -m infra.local.kafka_jars VERSION` writes the lock again for another version of Kafka.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from infra.errors import Transient

LOCK = Path(__file__).with_name("kafka.lock")
"""One jar a line: sha256, group:artifact:version."""

_LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl"
"""Without it Kafka runs but says nothing; takes the version of log4j-core that Kafka brings."""


def class_path(cache: Path, report: Callable[[str], None], lock: Path = LOCK) -> str:
    """The class path of the broker; what is not in `cache` yet is downloaded first.

    Raises:
        Transient: a jar cannot be downloaded, or what came is not what the lock says.
    """
    wanted = _read(lock)
    folder = cache / "maven"
    with _alone(cache):
        missing = [(jar, sha256) for jar, sha256 in wanted if not _is_whole(folder / _path(jar), sha256)]
        if missing:
            _download(folder, missing, report)
    return ":".join(str(folder / _path(jar)) for jar, _ in wanted)


def _download(folder: Path, missing: list[tuple[str, str]], report: Callable[[str], None]) -> None:
    context = _repository(folder)
    done_bytes = 0
    report(f"downloading Kafka: 0 of {len(missing)} jars")
    with ThreadPoolExecutor(max_workers=8) as pool:
        waiting = [pool.submit(_fetch, context, folder / _path(jar), jar, sha256) for jar, sha256 in missing]
        try:
            for count, finished in enumerate(as_completed(waiting), start=1):
                done_bytes += finished.result()
                report(f"downloading Kafka: {count} of {len(missing)} jars, {done_bytes / 1e6:.0f} MB")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(context: Any, path: Path, jar: str, sha256: str) -> int:
    path.unlink(missing_ok=True)  # half a file of an interrupted download
    group, artifact, version = jar.split(":")
    try:
        context.project(group, artifact).at_version(version).artifact().resolve()
    except Exception as error:  # jgo raises RuntimeError and whatever its HTTP client raises
        path.unlink(missing_ok=True)
        raise Transient(f"cannot download {jar}: {error}") from error
    if not _is_whole(path, sha256):
        path.unlink(missing_ok=True)
        raise Transient(f"{jar} was downloaded, but is not the file that {LOCK.name} names (sha256 differs)")
    return path.stat().st_size


def lock_text(version: str, cache: Path) -> str:
    """The lock for Kafka `version`: everything that its broker needs at run time, resolved and hashed now."""
    context = _repository(cache / "maven")
    broker = context.create_dependency(f"org.apache.kafka:kafka_2.13:{version}")
    broker.scope = "compile"
    artifacts = _resolved(context, broker)
    log4j = next(a.version for a in artifacts if a.artifactId == "log4j-core")
    logging = context.create_dependency(f"{_LOGGING}:{log4j}")
    logging.scope = "compile"
    artifacts += [a for a in _resolved(context, logging) if a.artifactId == _LOGGING.partition(":")[2]]
    lines = []
    for artifact in artifacts:
        digest = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
        lines.append(f"{digest} {artifact.groupId}:{artifact.artifactId}:{artifact.version}")
    return "\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n"


def _repository(folder: Path) -> Any:
    # Imported here: it takes a fifth of a second, and only a first start needs it.
    from jgo.maven import MavenContext

    # Its HTTP client brings certificates of its own; the machine's know a company's proxy too, where there is one.
    if trusted := ssl.get_default_verify_paths().cafile:
        os.environ.setdefault("REQUESTS_CA_BUNDLE", trusted)
    return MavenContext(repo_cache=folder, timeout=60)


def _resolved(context: Any, dependency: Any) -> list[Any]:
    given, transitive = context.resolver.resolve([dependency])
    return [d.artifact for d in [*given, *transitive] if d.scope in ("compile", "runtime")]


def _read(lock: Path) -> list[tuple[str, str]]:
    pairs = (line.split() for line in lock.read_text().splitlines())
    return [(jar, sha256) for sha256, jar in pairs]


def _path(jar: str) -> Path:
    group, artifact, version = jar.split(":")
    return Path(*group.split("."), artifact, version, f"{artifact}-{version}.jar")


def _is_whole(path: Path, sha256: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Two stacks that start at once share one download."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "maven.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    LOCK.write_text(lock_text(sys.argv[1], Path.home() / ".cache" / "tallybook"))
