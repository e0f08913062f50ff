"""What the topics promise."""

from __future__ import annotations

import pytest

from schemas.streams import STREAMS
from schemas.topics import Topic, bundled_topics, topic


def test_the_truth_is_kept_for_ever() -> None:
    assert topic("billing.events").config()["retention.ms"] == "-1"


def test_every_stream_has_its_topic() -> None:
    assert {stream.topic: stream.name for stream in STREAMS}.items() <= {
        each.name: each.stream for each in bundled_topics()
    }.items()


@pytest.mark.parametrize("each", bundled_topics(), ids=lambda each: each.name)
def test_no_topic_is_compacted_and_the_broker_tells_the_time(each: Topic) -> None:
    config = each.config()
    assert config["cleanup.policy"] == "delete"
    assert config["message.timestamp.type"] == "LogAppendTime"
    assert each.doc.endswith(".")


@pytest.mark.parametrize(("replication", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "2")])
def test_losing_one_broker_of_three_stops_no_writer(replication: int, in_sync: str) -> None:
    assert topic("billing.events").config(replication)["min.insync.replicas"] == in_sync


def test_usage_outlives_a_year_and_its_late_events() -> None:
    assert (topic("usage.events").retention_days or 0) >= 396
