"""Reads events from stream entries and stores them. An entry that is not an event is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from pydantic import ValidationError

from mesh import Unavailable
from mesh.events import DeliveredEvent
from quart_app.http.body import parse_json
from quart_app.http.problems import Problem, pointer
from quart_app.movements.metrics import MovementMetrics
from quart_app.movements.models import Event
from quart_app.movements.store import MovementStore, StoringResult

#: The most characters of the reason that lists the errors of an event. Many errors would make a long dead letter.
MAX_REASON_LENGTH = 500


class UnreadableEvent(ValueError):
    """The entry is not an event; the text says why."""


def read_event(fields: Mapping[str, str]) -> Event:
    """Return the event in an entry's fields. Raises UnreadableEvent.

    CloudEvents has two forms: the whole event as JSON in `body`, or its attributes as fields with JSON in `data`.
    """
    try:
        return Event.model_validate(_attributes(fields))
    except Problem as error:
        raise UnreadableEvent(error.detail) from error
    except ValidationError as error:
        sentences = (
            f"{pointer(field_error['loc']) or 'the event'}: {field_error['msg']}"
            for field_error in error.errors(include_url=False)
        )
        raise UnreadableEvent("; ".join(sentences)[:MAX_REASON_LENGTH]) from error


def _attributes(fields: Mapping[str, str]) -> object:
    """Return what the fields of an entry say of its event. Nothing is checked yet but the form of JSON."""
    if "body" in fields:
        return parse_json(_bytes_of(fields["body"]))
    if "data" not in fields:
        raise UnreadableEvent("the entry has neither a field body nor a field data")
    time_text = fields.get("time", "")
    # Fields of a stream are texts. A number of 20 digits or more is no time, so it stays a text, which `Event` refuses.
    return {
        **fields,
        "time": int(time_text) if time_text.isascii() and time_text.isdecimal() and len(time_text) < 20 else time_text,
        "data": parse_json(_bytes_of(fields["data"])),
    }


def _bytes_of(text: str) -> bytes:
    """Return the bytes that the stream has. They need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")


class Intake:
    """Stores batches of entries: it is the handler of the event consumer (`mesh.events.Events`).

    Calls `on_movement_changed` with the id of each movement that has a new row.
    """

    def __init__(
        self, store: MovementStore, metrics: MovementMetrics, on_movement_changed: Callable[[UUID], None]
    ) -> None:
        self._store, self._metrics, self._on_movement_changed = store, metrics, on_movement_changed
        #: why the last batch could not be stored; "" when it was
        self.trouble = ""

    async def __call__(self, entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        """Store the events; return the id of each refused entry with the reason. Raises Unavailable."""
        # An entry without an event is only in the third of these, so an event and its entry have one index.
        entry_ids, events, reason_by_entry_id = [], [], {}
        for entry in entries:
            try:
                events.append(read_event(entry.fields))
                entry_ids.append(entry.id)
            except UnreadableEvent as error:
                reason_by_entry_id[entry.id] = str(error)
        result = await self._store_events(events)
        self._metrics.stored.inc(len(result.new_events))
        self._metrics.duplicates.inc(result.duplicate_count)
        for movement_id in {event.data.movement_id for event in result.new_events}:
            self._on_movement_changed(movement_id)
        for index in result.refused_indexes:
            source, event_id = events[index].key
            reason_by_entry_id[entry_ids[index]] = (
                f"an event of source {source!r} with id {event_id!r} and another content is stored already"
            )
        return reason_by_entry_id

    async def _store_events(self, events: Sequence[Event]) -> StoringResult:
        """Store events, and keep in `trouble` whether they wait to be stored. Raises Unavailable."""
        try:
            result = await self._store.add(events)
        except Unavailable as error:
            self.trouble = f"events wait to be stored: {error}"
            raise
        self.trouble = ""
        return result

    async def is_done(self, entry: DeliveredEvent) -> bool:
        """Return whether the event of an entry is stored. Raises Unavailable.

        The event consumer asks before it buries an event whose consumers died.
        """
        try:
            return await self._store.has_event(read_event(entry.fields))
        except UnreadableEvent:
            return False
