"""The reads that all viewers of the live page share.

Each read runs at most once per interval, and only while somebody looks.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from mesh import Mesh, MeshError, keys
from mesh.control import Journeys, JourneyStep, OperationStates, read_states, read_waiting
from mesh.dead import DeadLetter, DeadLetters
from quart_app.dashboard import later, minutes
from quart_app.dashboard.figures import Figures, FiguresReader
from quart_app.dashboard.pages import Entries, ServicesView
from quart_app.dashboard.ticker import Ticker
from quart_app.panels import Panel
from quart_app.service import Service

#: Shortest intervals between two reads of the same kind: a short one shows changes sooner, a long one costs less.
LOOK_S = 1.0
DEAD_LOOK_S = 5.0
MINUTES_LOOK_S = 10.0
#: The read of operations counts requests, up to a thousand on each stream. It costs more than the others, so it has a
#: longer interval.
OPERATIONS_LOOK_S = 5.0
#: The most bytes of a dead letter's body that are shown.
MOST_BODY_BYTES = 300
#: Entries of the chosen stream that are shown.
MOST_SHOWN_ENTRIES = 5
#: Newest replies of each replica that are read.
REPLIES_PER_REPLICA = 20
#: Entries of the audit log that are shown.
AUDIT_ENTRIES_SHOWN = 10
#: The most events that are kept, so that viewers of the same view get the same event. Each view needs one or two.
KEPT_EVENTS = 10
#: The most references whose requests are kept for all viewers. If a viewer asks for one more, all are dropped.
KEPT_REFERENCES = 50


class Looks:
    """The shared reads (looks) and rendered sections of one membership of this replica. `LivePage` has one."""

    def __init__(self, replica: Mesh, services: Sequence[Service]) -> None:
        self.replica = replica
        self._services = services
        self.figures: Ticker[Figures] = Ticker(FiguresReader(replica).read, LOOK_S)
        self.letters: Ticker[Sequence[DeadLetter]] = Ticker(self._read_letters, DEAD_LOOK_S)
        #: the newest answered requests of all replicas; each JourneyStep is one request
        self.steps: Ticker[Sequence[JourneyStep]] = Ticker(self._read_steps, LOOK_S)
        #: the same requests, read less often, for the overview, which many people leave open
        self.overview_steps: Ticker[Sequence[JourneyStep]] = Ticker(self.steps.newest, MINUTES_LOOK_S)
        self.minutes: Ticker[Sequence[float]] = Ticker(self._read_minutes, MINUTES_LOOK_S)
        self.operations: Ticker[OperationStates] = Ticker(self._read_operations, OPERATIONS_LOOK_S)
        self.services: Ticker[ServicesView] = Ticker(self._read_services, LOOK_S)
        #: (view, arguments, whether the viewer may act) -> the figures that the sections were made of, and the
        #: sections; `LivePage` fills it, and empties it when it is full
        self.sections: dict[tuple[str, tuple[tuple[str, str], ...], bool], tuple[Figures, Mapping[str, str]]] = {}
        #: the newest events: the sections before an event, those after it, and its text
        self._events: deque[tuple[Mapping[str, str], Mapping[str, str], str]] = deque(maxlen=KEPT_EVENTS)
        #: held while sections are made. So only the first viewer of a view makes them, and the others find them made.
        self.sections_lock = asyncio.Lock()
        #: the letters of the last read, and the state of their stream at that time: its length, and the number of all
        #: entries that were ever added to it; 0 if the stream is empty
        self._letters: Sequence[DeadLetter] = ()
        self._letters_state: Any = 0
        #: reference to a request -> the read of the requests that it names
        self._tickers_by_reference: dict[str, Ticker[list[JourneyStep]]] = {}
        self._journeys = Journeys(replica.shared, replica.settings)

    async def find_requests(self, reference: str) -> Sequence[JourneyStep]:
        """Return the requests that a reference names. They are read at most once a second for all viewers."""
        if reference not in self._tickers_by_reference:
            # Viewers choose the references, so there is no end of them.
            if len(self._tickers_by_reference) >= KEPT_REFERENCES:
                self._tickers_by_reference.clear()
            self._tickers_by_reference[reference] = Ticker(functools.partial(self._journeys.find, reference), LOOK_S)
        return await self._tickers_by_reference[reference].newest()

    async def oldest_entries(self, address: str) -> Entries:
        """Return the oldest entries of the request stream of an address, such as "A" or "db3"."""
        entries: Any = await self.replica.shared.xrange(keys.REQUESTS + address, count=MOST_SHOWN_ENTRIES)
        return entries or ()

    def expire(self) -> None:
        """Let the next look read anew what an operator can have changed by an act.

        The reads that are not named here show a change when their interval ends, such as after a second for
        `find_requests`.
        """
        for ticker in (self.figures, self.letters, self.steps, self.operations, self.services):
            ticker.expire()

    def event(self, before: Mapping[str, str], after: Mapping[str, str]) -> str:
        """Return the event with the sections that differ between `before` and `after`.

        It is made once for all viewers of a view. If no section differs, the event has none, and only tells the page
        that its connection is alive.
        """
        # Comparing with `is` is enough: all viewers of a view share the same objects. Only the first event of a viewer,
        # who has no sections yet, is not shared.
        for kept_before, kept_after, text in self._events:
            if kept_before is before and kept_after is after:
                return text
        changed = {id: html for id, html in after.items() if before.get(id) != html}
        text = f"event: sections\ndata: {json.dumps(changed)}\n\n"
        self._events.append((before, after, text))
        return text

    async def _read_steps(self) -> Sequence[JourneyStep]:
        return await self._journeys.newest(REPLIES_PER_REPLICA)

    async def _read_minutes(self) -> Sequence[float]:
        # The number of answers in a minute is the difference of two entries, so one more entry is read.
        newest_first: Any = await self.replica.shared.xrevrange(keys.MINUTES, count=minutes.SHOWN_MINUTES + 1)
        return minutes.answered_per_minute(newest_first[::-1])

    async def _read_operations(self) -> OperationStates:
        return await read_states(self.replica.shared, self.replica.settings, await self.steps.newest())

    async def _read_services(self) -> ServicesView:
        redis = self.replica.shared
        audit: Any = await redis.xrevrange(keys.AUDIT, count=AUDIT_ENTRIES_SHOWN)
        panels = [await self._read_panel(service) for service in self._services if service.panel is not None]
        panels.append(later.panel(await read_waiting(redis, later.MOST_SHOWN), self.replica.now_ms()))
        return ServicesView(await self.operations.newest(), audit or (), panels)

    async def _read_panel(self, service: Service) -> Panel:
        """Read the panel of a service that has one. If the service raises MeshError, return a panel with the reason.

        An error of Redis is raised: the other reads of the view cannot succeed then, either.
        """
        assert service.panel is not None
        try:
            return await service.panel(self.replica)
        except MeshError as error:
            return Panel(service.name, service.name.capitalize(), note=error.detail)

    async def _read_letters(self) -> Sequence[DeadLetter]:
        """Return all letters. They are read again only if letters came or went since the last look."""
        # XLEN first, because XINFO raises an error for a stream that does not exist.
        stream_info = await self.replica.shared.xlen(keys.DEAD) and await self.replica.shared.xinfo_stream(keys.DEAD)
        stream_state = stream_info and (stream_info["length"], stream_info["entries-added"])
        if stream_state != self._letters_state:
            dead_letters = DeadLetters(self.replica.shared, self.replica.settings.stream_bound)
            self._letters, self._letters_state = await dead_letters.all(body=MOST_BODY_BYTES), stream_state
        return self._letters
