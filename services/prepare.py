"""Brings Postgres and Kafka to what the processes expect: migrations, first generations of the projections, topics.

Consumes nothing. Runs as the owner, before the other processes; repeats safely because each step does only what is
missing, and several may run at once.
"""

from __future__ import annotations

from infra import kafka, postgres, telemetry
from infra.migrate import migrate
from infra.settings import Settings
from projections import generation

log = telemetry.logger("services.prepare")


def main(settings: Settings) -> int:
    """Do what is missing; 0 when everything is there."""
    prepare(settings)
    return 0


def prepare(settings: Settings) -> None:
    """Bring both to what the processes expect.

    Raises:
        Transient: one of them does not answer.
        Misconfigured: something exists and differs, or the owner may not create what is missing.
    """
    log.info("migrations applied", files=migrate(settings))
    with postgres.connect(postgres.owner_url(settings)) as connection, connection.cursor() as tx:
        log.info("generations created", schemas=generation.ensure(tx))
    log.info("topics created", topics=kafka.ensure_topics(kafka.KafkaConfig.of(settings), topics(settings)))


def topics(settings: Settings) -> kafka.TopicSettings:
    """What this deployment chooses about the topics."""
    partitions = {"billing": settings.billing_partitions, "usage": settings.usage_partitions}
    return kafka.TopicSettings(partitions=partitions, replication=settings.topic_replication)
