"""Kafka, through librdkafka: the one place that the services import.

Topics, groups and transactional ids go in by their plain names (`billing.events`); a prefix that several
systems on one cluster need is added and taken off here. Placement of a tenant is `partition_for`.
"""

from __future__ import annotations

from infra.kafka_client import Delivery as Delivery
from infra.kafka_client import KafkaConfig as KafkaConfig
from infra.kafka_client import Position as Position
from infra.kafka_client import Record as Record
from infra.kafka_client import headers as headers
from infra.kafka_client import partition_for as partition_for
from infra.kafka_consumer import Consumer as Consumer
from infra.kafka_producer import Producer as Producer
from infra.kafka_producer import TransactionalProducer as TransactionalProducer
from infra.kafka_topics import TopicSettings as TopicSettings
from infra.kafka_topics import check_topics as check_topics
from infra.kafka_topics import committed_offsets as committed_offsets
from infra.kafka_topics import end_offsets as end_offsets
from infra.kafka_topics import ensure_topics as ensure_topics
from infra.kafka_topics import scan as scan
from infra.kafka_topics import start_offsets as start_offsets
