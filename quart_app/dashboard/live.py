"""The live page's routes, on the private port: the views, and their changes as Server-Sent Events.

    GET /mesh, /mesh/streams?stream=, /mesh/dead    a page, complete without JavaScript
    GET /mesh/events/{view}                         text/event-stream: what has changed, once a second

A viewer gets a whole section as HTML when anything in it changes, and an empty event when nothing does. All viewers of
a replica share one read per second.
Nothing is replayed: a new connection gets every section at once. The page is read-only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from quart import Blueprint, Response, request
from quart_schema import hide
from redis.exceptions import RedisError
from werkzeug.exceptions import NotFound

from mesh import MeshError, Replica, keys
from quart_app.dashboard.assets import POLICY, Assets
from quart_app.dashboard.figures import DeadLetter, Figures, FiguresReader, dead_letter
from quart_app.dashboard.pages import OVERVIEW, VIEWS, Entries, Pages, PageView, grouped
from quart_app.dashboard.ticker import Ticker
from quart_app.http.problems import Problem
from quart_app.service import Context

LOOK_S = 1.0
DEAD_LOOK_S = 5.0
#: Dead letters that the view reads.
MOST_LETTERS = 200
#: Entries of the chosen stream that are shown.
SHOWN_ENTRIES = 5
#: Viewers of one replica; the next one is told to come back, and the balancer may give it another replica.
MOST_VIEWERS = 50
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class _Looks:
    """What one membership's viewers share."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.figures: Ticker[Figures] = Ticker(FiguresReader(replica).read, LOOK_S)
        self.letters: Ticker[Sequence[DeadLetter]] = Ticker(self._read_letters, DEAD_LOOK_S)

    async def _read_letters(self) -> Sequence[DeadLetter]:
        found: Any = await self.replica.shared.xrevrange(keys.DEAD, count=MOST_LETTERS)
        return [dead_letter(id, fields) for id, fields in found]

    async def entries(self, stream: str) -> Entries:
        found: Any = await self.replica.shared.xrange(keys.REQUESTS + stream, count=SHOWN_ENTRIES)
        return found or ()


class LivePage:
    """Views of the mesh, as this replica sees it."""

    def __init__(self, context: Context, leaving: Callable[[], bool]) -> None:
        self._context = context
        self._leaving = leaving
        self._assets = Assets()
        self._pages = Pages(self._assets)
        self._looks: _Looks | None = None
        self._viewers = 0

    def routes(self) -> list[Blueprint]:
        """GET /mesh, its views and events, and the files that the pages load."""
        blueprint = Blueprint("live", __name__)

        @blueprint.get("/mesh", defaults={"name": OVERVIEW})
        @blueprint.get("/mesh/<name>")
        @hide
        async def page(name: str) -> Response:
            arguments = request.args.to_dict()
            view = await self._view(_known(name), arguments, await self._current().figures.newest())
            html = self._pages.page(view, f"/mesh/events/{name}?{urlencode(arguments)}")
            return Response(html, content_type="text/html; charset=utf-8", headers=HEADERS)

        @blueprint.get("/mesh/events/<name>")
        @hide
        async def events(name: str) -> Response:
            if self._viewers >= MOST_VIEWERS:
                raise Problem(503, f"{MOST_VIEWERS} viewers follow this replica; try again later", retry_after=5)
            stream = self._stream(_known(name), request.args.to_dict())
            response = Response(stream, content_type="text/event-stream; charset=utf-8", headers=HEADERS)
            response.timeout = None  # the stream has no end of its own
            return response

        return [blueprint, self._assets.routes()]

    async def _stream(self, name: str, arguments: Mapping[str, str]) -> AsyncIterator[str]:
        self._viewers += 1
        try:
            yield "retry: 1000\n\n"
            shown: dict[str, str] = {}
            number = 0
            while not self._leaving():
                looks = self._current()
                try:
                    figures = await looks.figures.next(number)
                    number = looks.figures.number
                    sections = self._pages.sections(await self._view(name, arguments, figures))
                except (RedisError, MeshError, OSError, TimeoutError):
                    await asyncio.sleep(LOOK_S)  # the page keeps its figures and says since when
                    continue
                changed = {id: html for id, html in sections.items() if shown.get(id) != html}
                shown = sections
                yield f"event: sections\ndata: {json.dumps(changed)}\n\n"  # also when empty: the page then knows
            yield "event: bye\ndata: \n\n"
        finally:
            self._viewers -= 1

    def _current(self) -> _Looks:
        """Return the looks of the present membership. Raises Unavailable while there is none."""
        replica = self._context.mesh
        if self._looks is None or self._looks.replica is not replica:
            self._looks = _Looks(replica)
        return self._looks

    async def _view(self, name: str, arguments: Mapping[str, str], figures: Figures) -> PageView:
        looks = self._current()
        chosen = ""
        entries: Entries = ()
        letters: Sequence[DeadLetter] = ()
        if name == "streams":
            names = {stream.name for stream in figures.streams}
            longest = max(figures.streams, key=lambda stream: stream.length).name
            chosen = arguments.get("stream", "") if arguments.get("stream") in names else longest
            entries = await looks.entries(chosen)
        if name == "dead":
            letters = await looks.letters.newest()
        settings = looks.replica.settings
        return PageView(
            name=name,
            figures=figures,
            replica=looks.replica.id,
            stream_bound=settings.stream_bound,
            lease_ttl_ms=settings.lease_ttl_ms,
            bodies=self._context.settings.page_bodies,
            chosen=chosen,
            entries=entries,
            groups=grouped(letters),
        )


def _known(name: str) -> str:
    """Return the name of a view. Raises NotFound for any other name."""
    if name not in VIEWS:
        raise NotFound
    return name
