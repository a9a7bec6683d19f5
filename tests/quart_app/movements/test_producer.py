"""The messages of the producer are events that the service reads."""

from __future__ import annotations

import json
from collections import Counter

from click.testing import CliRunner

from quart_app.movements.intake import read_event
from quart_app.movements.producer import MovementSimulator, main, sample
from tests.support.server import Server

STREAM = "events:movements"


def sent_to(server: Server, *options: str) -> list[dict[str, str]]:
    """Run the producer and return the entries of the stream."""
    done = CliRunner().invoke(main, ["--redis-url", server.url, *options])
    assert done.exit_code == 0, done.output
    with server.redis() as client:
        return [fields for _, fields in client.xrange(STREAM)]


def test_it_adds_events_to_the_stream(server: Server) -> None:
    """Each movement has two readable events, some sent twice; the same seed makes the same ids."""
    events = [
        read_event(fields) for fields in sent_to(server, "--movements", "600", "--duplicates", "0.1", "--seed", "1")
    ]
    counted = Counter(event.key for event in events)
    assert len(counted) == 1200
    assert 1200 < len(events) < 1500
    assert len({event.data.movement_id for event in events}) == 600
    again = MovementSimulator(seed=1).make_messages(600, duplicates=0.1)
    assert [(one["source"], one["id"]) for one in again] == [event.key for event in events]


def test_the_sample_is_one_movement(server: Server) -> None:
    """The sample has the ids of the documentation."""
    assert [json.loads(fields["body"]) for fields in sent_to(server, "--sample")] == list(sample())


def test_without_redis_it_ends_with_a_sentence() -> None:
    """The producer prints a sentence and ends with a status."""
    done = CliRunner().invoke(main, ["--redis-url", "redis://127.0.0.1:9/0", "--sample"])
    assert done.exit_code == 1
    assert "Redis did not accept the messages" in done.output
