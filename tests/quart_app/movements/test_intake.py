"""Reading events from stream entries and storing them; other entries are refused with a reason."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from mesh import Unavailable
from mesh.events.reader import DeliveredEvent
from quart_app.movements.intake import MAX_REASON_LENGTH, Intake, UnreadableEvent, read_event
from quart_app.movements.metrics import MovementMetrics
from quart_app.movements.models import Direction, Event
from quart_app.movements.producer import Message, sample
from quart_app.movements.store import MovementStore, StoringResult


def changed(path: str, value: Any) -> Message:
    """Return the sample's arrival with one field changed; `...` removes it."""
    message = copy.deepcopy(sample()[1])
    *folders, name = path.split(".")
    place = message
    for folder in folders:
        place = place[folder]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return message


def body(message: Any) -> dict[str, str]:
    return {"body": json.dumps(message)}


def test_a_message_of_the_retailer_is_read() -> None:
    """The message may have attributes that the service does not use."""
    event = read_event(body(sample()[1]))
    assert event.key == ("WH-3423", "b3b53031-e83a-4654-87f5-b6b6fb09fd99")
    assert event.data.movement_id == UUID("c6290746-790e-43fa-8270-014dc90e02e0")
    assert event.data.timestamp == datetime(2025, 2, 18, 14, 34, 56, tzinfo=UTC)
    assert (event.data.event, event.data.quantity) == (Direction.ARRIVAL, 100)


def test_attributes_may_be_fields_of_their_own() -> None:
    """In this form of CloudEvents only `data` is JSON."""
    message = sample()[1]
    fields = {name: str(value) for name, value in message.items()} | {"data": json.dumps(message["data"])}
    assert read_event(fields) == read_event(body(message))


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("data.timestamp", "2025-02-18T14:34:56", "2025-02-18T14:34:56+00:00"),
        ("data.timestamp", "2025-02-18T17:34:56.5+03:00", "2025-02-18T14:34:56.500000+00:00"),
        ("data.timestamp", "2025-02-18 14:34:56Z", "2025-02-18T14:34:56+00:00"),
    ],
)
def test_times_are_utc(path: str, value: str, read: str) -> None:
    """Any offset is converted; a time without one is UTC, as in the retailer's messages."""
    assert read_event(body(changed(path, value))).data.timestamp.isoformat() == read


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("id", ..., "/id: Field required"),
        ("id", "", "/id: "),
        ("id", 7, "/id: "),
        ("id", "x" * 256, "/id: "),
        ("id", "a\x00b", "control characters"),
        ("source", None, "/source: "),
        ("source", "WH\n1", "control characters"),
        ("time", "soon", "/time: "),
        ("time", -1, "/time: "),
        ("time", 1e12, "/time: "),
        ("time", True, "/time: "),
        ("time", 10**18, "/time: "),
        ("data", ..., "/data: Field required"),
        ("data", [], "/data: "),
        ("data.movement_id", "M-1", "/data/movement_id: "),
        ("data.warehouse_id", 5, "/data/warehouse_id: "),
        ("data.product_id", ..., "/data/product_id: "),
        ("data.event", "lost", "/data/event: "),
        ("data.event", "ARRIVAL", "/data/event: "),
        ("data.quantity", -1, "/data/quantity: "),
        ("data.quantity", 1.0, "/data/quantity: "),
        ("data.quantity", "5", "/data/quantity: "),
        ("data.quantity", True, "/data/quantity: "),
        ("data.quantity", 2**31, "/data/quantity: "),
        ("data.timestamp", 1739889296, "a time is written like"),
        ("data.timestamp", "1739889296", "a time is written like"),
        ("data.timestamp", "2025-02-18", "a time is written like"),
        ("data.timestamp", "2025-02-30T00:00:00Z", "/data/timestamp: "),
        ("data.timestamp", "0001-01-01T00:00:00+14:00", "this time is out of range in UTC"),
        ("data.timestamp", "9999-12-31T23:59:59-14:00", "this time is out of range in UTC"),
    ],
)
def test_an_entry_that_is_no_event_is_refused_with_the_field(path: str, value: Any, reason: str) -> None:
    """The reason names the field, for the sender."""
    with pytest.raises(UnreadableEvent) as caught:
        read_event(body(changed(path, value)))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "neither a field body nor a field data"),
        ({"body": ""}, "not JSON"),
        ({"body": "{"}, "not JSON"),
        ({"body": "7"}, "valid dictionary"),
        ({"body": '{"id": NaN}'}, "NaN is not JSON"),
        ({"body": '{"id": "1", "id": "2"}'}, "the same key twice"),
        ({"body": "[" * 100_000}, "nested too deeply"),
        ({"body": '{"id": "\\ud800"}'}, "half a surrogate pair"),
        ({"body": '{"id": "\udcff"}'}, "not UTF-8"),
        ({"body": '{"time": ' + "1" * 5000 + "}"}, "too long"),
        ({"id": "1", "source": "s", "time": "x", "data": "{}"}, "/time: "),
        ({"data": "nothing"}, "not JSON"),
    ],
)
def test_an_entry_that_is_no_json_object_is_refused(fields: dict[str, str], reason: str) -> None:
    """Any entry is an event or becomes a dead letter."""
    with pytest.raises(UnreadableEvent, match=reason):
        read_event(fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PLACES = ["id", "source", "time", "data", *(f"data.{name}" for name in sample()[0]["data"])]


@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_value_in_any_place_is_an_event_or_refused(place: str, value: Any) -> None:
    """An error of another kind would be tried again without end."""
    try:
        event = read_event(body(changed(place, value)))
    except UnreadableEvent as error:
        assert 0 < len(str(error)) <= MAX_REASON_LENGTH
    else:
        assert isinstance(event, Event)


async def test_a_batch_is_stored_without_its_refused_entries(store: MovementStore) -> None:
    """Each refused entry has its own reason; `changed` gets each movement with a new row."""
    registry = CollectorRegistry()
    heard: list[UUID] = []
    intake = Intake(store, MovementMetrics(registry), heard.append)
    departure, arrival = sample()
    other = changed("data.quantity", 99)
    batch = [departure, "nonsense", arrival, departure, other]
    entries = [DeliveredEvent(f"{n}-0", body(message)) for n, message in enumerate(batch)]
    refused = await intake(entries)
    assert refused == {
        "1-0": "the event: Input should be a valid dictionary or instance of Event",
        "4-0": "an event of source 'WH-3423' with id 'b3b53031-e83a-4654-87f5-b6b6fb09fd99' and another content is "
        "stored already",
    }
    assert heard == [UUID(departure["data"]["movement_id"])]
    assert registry.get_sample_value("movements_stored_counter_total") == 2
    assert registry.get_sample_value("mesh_movements_duplicates_total") == 1


async def test_a_redelivered_batch_changes_nothing(store: MovementStore) -> None:
    """A batch is redelivered after a kill between the commit and its acknowledgement."""
    registry = CollectorRegistry()
    intake = Intake(store, MovementMetrics(registry), lambda movement_id: None)
    entries = [DeliveredEvent(f"{n}-0", body(message)) for n, message in enumerate(sample())]
    assert await intake(entries) == {}
    assert await intake(entries) == {}
    assert registry.get_sample_value("movements_stored_counter_total") == 2
    assert registry.get_sample_value("mesh_movements_duplicates_total") == 2


async def test_trouble_is_told_until_events_are_stored_again(
    store: MovementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/readyz` names the reason while events wait; the next batch that is stored ends it."""
    intake = Intake(store, MovementMetrics(CollectorRegistry()), on_movement_changed=lambda movement_id: None)
    entries = [DeliveredEvent("1-0", {"body": json.dumps(sample()[0])})]

    async def full(events: object) -> StoringResult:
        raise Unavailable("the movements database cannot be used: the disk is full")

    with monkeypatch.context() as failing:
        failing.setattr(store, "add", full)
        with pytest.raises(Unavailable):
            await intake(entries)
    assert intake.trouble == "events wait to be stored: the movements database cannot be used: the disk is full"
    await intake(entries)
    assert intake.trouble == ""
