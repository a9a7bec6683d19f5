"""From the stream to the tables: read, store, tell. A message that cannot be read is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from pydantic import ValidationError

from mesh.events.consumer import Entry
from quart_app.http.body import parse_json
from quart_app.http.problems import Problem, pointer
from quart_app.movements.metrics import Metrics
from quart_app.movements.models import Event
from quart_app.movements.store import Store

#: Enough to see what is wrong; a reason is for people.
MAX_REASON = 500


class Unreadable(ValueError):
    """The entry is no event; the text says why."""


def read_event(fields: Mapping[str, str]) -> Event:
    """The event that an entry's fields are: all of it as JSON in `body`, or its attributes as fields with JSON in
    `data`, CloudEvents' two ways. Raises Unreadable.
    """
    try:
        return Event.model_validate(_content(fields))
    except Problem as error:
        raise Unreadable(error.detail) from error
    except ValidationError as error:
        found = (f"{pointer(each['loc']) or 'the event'}: {each['msg']}" for each in error.errors(include_url=False))
        raise Unreadable("; ".join(found)[:MAX_REASON]) from error


def _content(fields: Mapping[str, str]) -> object:
    if "body" in fields:
        return parse_json(_bytes(fields["body"]))
    if "data" not in fields:
        raise Unreadable("the entry has neither a field body nor a field data")
    time = fields.get("time", "")
    return {
        **fields,
        "time": int(time) if time.isascii() and time.isdecimal() and len(time) < 20 else time,
        "data": parse_json(_bytes(fields["data"])),
    }


def _bytes(text: str) -> bytes:
    """What stood on the stream, where it was no text."""
    return text.encode("utf-8", "surrogateescape")


class Intake:
    """The handler of the movements' events; `changed` hears of each movement that has a new row."""

    def __init__(self, store: Store, metrics: Metrics, changed: Callable[[UUID], None]) -> None:
        self._store, self._metrics, self._changed = store, metrics, changed

    async def __call__(self, entries: Sequence[Entry]) -> Mapping[str, str]:
        """Store what can be read, and refuse the rest. Raises Unavailable while the database is down."""
        ids, events, refused = [], [], {}
        for entry in entries:
            try:
                events.append(read_event(entry.fields))
                ids.append(entry.id)
            except Unreadable as error:
                refused[entry.id] = str(error)
        stored = await self._store.add(events)
        self._metrics.stored.inc(len(stored.new))
        self._metrics.duplicates.inc(stored.duplicates)
        for movement_id in {event.data.movement_id for event in stored.new}:
            self._changed(movement_id)
        for place in stored.taken:
            source, id = events[place].key
            refused[ids[place]] = f"another event of source {source!r} with id {id!r} was stored before"
        return refused

    async def is_done(self, entry: Entry) -> bool:
        """Whether an event is in the tables. Raises Unavailable while the database is down."""
        try:
            return await self._store.has(read_event(entry.fields))
        except Unreadable:
            return False
