"""The live page's routes, on the private port: the views, and their changes as Server-Sent Events.

    GET /mesh, /mesh/streams?stream=, /mesh/requests?request=&op=, /mesh/dead, /mesh/services
                                                a page, complete without JavaScript
    GET /mesh/events/{view}                     text/event-stream: what has changed, once a second
    /mesh/sign-in, /mesh/confirm, /mesh/acts    see `acts`

If anything in a section of the page changes, the viewers of the page get the whole section as HTML. If nothing
changes, they get an empty event. All viewers of a replica share one read per second. A new connection gets every
section at once, so no past event is sent again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from quart import Blueprint, Response, jsonify, request
from quart_schema import hide
from redis.exceptions import RedisError
from werkzeug.exceptions import NotFound

from mesh import MeshError
from mesh.dead import DeadLetter
from quart_app.dashboard import activity, acts
from quart_app.dashboard.assets import CONTENT_SECURITY_POLICY, Assets
from quart_app.dashboard.figures import Figures
from quart_app.dashboard.looks import LOOK_S, Looks
from quart_app.dashboard.pages import OVERVIEW, SEARCH_FIELDS, VIEWS, Entries, Pages, PageView, group_letters
from quart_app.http.problems import Problem
from quart_app.service import Context, Service

#: The most answers in the list on the view of requests. More would make each update of the view larger.
MOST_ANSWER_ROWS = 40
#: The most characters that are used of a reference, or of another text by which the view of requests is searched. What
#: follows them is ignored.
MOST_SEARCH_CHARACTERS = 200
#: The most viewers of one replica, because each keeps a connection open. The next viewer is told to try again later,
#: and the balancer may choose another replica.
MOST_VIEWERS = 50
#: A Referer that names one of the live page's views; `path` is the part that leads back to the view.
_REFERER = re.compile(r"https?://[^/?#]+(?P<path>/mesh/(?P<view>\w+)(\?[^#\s]*)?)")
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-store",
    # With "no-referrer" browsers send `Origin: null` with the page's own forms, so they would count as another site's.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class LivePage:
    """The live page: views of the mesh, as this replica sees it."""

    def __init__(self, context: Context, turns_away: Callable[[], bool], services: Sequence[Service] = ()) -> None:
        self._context = context
        self._services = services
        self._acts = {**acts.ACTS, **{act.name: act for service in services for act in service.acts}}
        #: returns whether clients should go to another replica. Then the event streams end, so that viewers go there.
        self._turns_away = turns_away
        self._assets = Assets()
        self._pages = Pages(self._assets)
        self._operator_check = acts.OperatorCheck(context.settings)
        #: what all viewers share; None before the first viewer
        self._looks: Looks | None = None
        self._viewer_count = 0

    def routes(self) -> list[Blueprint]:
        """Return the routes of /mesh, its views, events and acts, and the files that the pages load."""
        blueprint = Blueprint("live", __name__)

        @blueprint.get("/mesh", defaults={"name": OVERVIEW})
        @blueprint.get("/mesh/<name>")
        @hide
        async def page(name: str) -> Response:
            arguments = request.args.to_dict()
            view = await self._page_view(
                _known_view(name), arguments, await self._current_looks().figures.newest(), await self._may_act()
            )
            html = self._pages.page(view, f"/mesh/events/{name}?{urlencode(arguments)}")
            return _html_response(html)

        @blueprint.get("/mesh/events/<name>")
        @hide
        async def events(name: str) -> Response:
            if self._viewer_count >= MOST_VIEWERS:
                # 5 s: browsers that try again sooner would mostly find no place either.
                raise Problem(503, f"{MOST_VIEWERS} viewers follow this replica; try again later", retry_after=5)
            stream = self._event_stream(_known_view(name), request.args.to_dict(), await self._may_act())
            response = Response(stream, content_type="text/event-stream; charset=utf-8", headers=HEADERS)
            response.timeout = None  # the stream has no end of its own
            return response

        self._add_act_routes(blueprint)
        return [blueprint, self._assets.routes()]

    def _add_act_routes(self, blueprint: Blueprint) -> None:
        """Add the routes GET /mesh/sign-in, GET /mesh/confirm/{act} and POST /mesh/acts/{act}."""

        @blueprint.get("/mesh/sign-in")
        @hide
        async def sign_in() -> Response:
            await self._operator_check.actor_of(request, self._context.mesh)
            return Response("", 303, {**HEADERS, "Location": _view_of_referer(request.headers.get("Referer", ""))})

        @blueprint.get("/mesh/confirm/<name>")
        @hide
        async def confirm(name: str) -> Response:
            act, replica = acts.find_act(name, self._acts), self._context.mesh
            await self._operator_check.actor_of(request, replica)
            question = await acts.ask_before(act, replica, request.args.to_dict())
            # True: only the operator comes here, who may act.
            view = await self._page_view(act.view, {}, await self._current_looks().figures.newest(), True)
            return _html_response(self._pages.fixed_page(view, "confirm", act=act, question=question))

        @blueprint.post("/mesh/acts/<name>")
        @hide
        async def do(name: str) -> Response:
            act, replica = acts.find_act(name, self._acts), self._context.mesh
            actor = await self._operator_check.actor_of(request, replica)
            done = await acts.carry_out(act, replica, await acts.read_fields(request), actor)
            looks = self._current_looks()
            looks.expire()  # so that the page shows what the act has changed
            if request.mimetype == "application/json":
                return jsonify({"text": done.text, **done.facts})
            # True, as in `confirm`.
            view = await self._page_view(act.view, {}, await looks.figures.newest(), True)
            return _html_response(self._pages.fixed_page(view, "done", act=act, text=done.text))

    async def _may_act(self) -> bool:
        """Return whether this viewer is signed in as the operator, so that the page shows the acts."""
        return await self._operator_check.is_signed_in(request, self._context.mesh)

    async def _event_stream(self, name: str, arguments: Mapping[str, str], may_act: bool) -> AsyncIterator[str]:
        """Yield the events for one viewer, until the viewer goes or this replica turns its clients away."""
        self._viewer_count += 1
        try:
            yield "retry: 1000\n\n"  # ms until the browser connects again: as long as between two events
            sections_at_viewer: Mapping[str, str] = {}
            seen_number = 0
            while not self._turns_away():
                looks = self._current_looks()
                try:
                    figures = await looks.figures.next(seen_number)
                    seen_number = looks.figures.number
                    sections = await self._sections(looks, (name, tuple(sorted(arguments.items())), may_act), figures)
                except (RedisError, MeshError, OSError, TimeoutError):
                    # Read again after the usual pause. Meanwhile the page shows the last figures, and for how long it
                    # has got no news.
                    await asyncio.sleep(LOOK_S)
                    continue
                yield looks.event(sections_at_viewer, sections)
                sections_at_viewer = sections
            yield "event: bye\ndata: \n\n"  # the page connects again, and the balancer chooses another replica
        finally:
            self._viewer_count -= 1

    async def _sections(
        self, looks: Looks, view_key: tuple[str, tuple[tuple[str, str], ...], bool], figures: Figures
    ) -> Mapping[str, str]:
        """Return the sections of a view as HTML, by the ids of their elements. All viewers who see the same share them.

        `view_key` has the name of the view, its arguments, and whether the viewer may act.
        """
        async with looks.sections_lock:
            figures_and_sections = looks.sections.get(view_key)
            if figures_and_sections is None or figures_and_sections[0] is not figures:
                # Clients choose the arguments, so there is no end of keys. One key for each viewer is enough.
                if len(looks.sections) >= MOST_VIEWERS:
                    looks.sections.clear()
                name, arguments, may_act = view_key
                view = await self._page_view(name, dict(arguments), figures, may_act)
                figures_and_sections = looks.sections[view_key] = figures, self._pages.sections(view)
            return figures_and_sections[1]

    def _current_looks(self) -> Looks:
        """Return what the viewers of the present membership share. Raises Unavailable while there is no membership."""
        replica = self._context.mesh
        if self._looks is None or self._looks.replica is not replica:
            self._looks = Looks(replica, self._services)
        return self._looks

    async def _page_view(self, name: str, arguments: Mapping[str, str], figures: Figures, may_act: bool) -> PageView:
        """Return what the view of this name shows. `arguments` are those of the query in the page's address."""
        looks = self._current_looks()
        chosen_stream = ""
        entries: Entries = ()
        letters: Sequence[DeadLetter] = ()
        if name == "streams":
            stream_names = {stream.name for stream in figures.streams}
            longest = max(figures.streams, key=lambda stream: stream.length).name
            chosen_stream = arguments.get("stream", "") if arguments.get("stream") in stream_names else longest
            entries = await looks.oldest_entries(chosen_stream)
        if name == "dead":
            letters = await looks.letters.newest()
        fields_of_view: dict[str, Any] = {}
        if name == "requests":
            fields_of_view = await self._fields_of_requests_view(looks, arguments, figures)
        if name == "services":
            fields_of_view["services"] = await looks.services.newest()
        if name == OVERVIEW:
            fields_of_view |= {"minutes": await looks.minutes.newest(), "answers": await looks.overview_steps.newest()}
        settings = looks.replica.settings
        return PageView(
            name=name,
            figures=figures,
            replica=looks.replica.id,
            stream_bound=settings.stream_bound,
            lease_ttl_ms=settings.lease_ttl_ms,
            bodies=self._context.settings.page_bodies,
            chosen_stream=chosen_stream,
            entries=entries,
            groups=group_letters(letters),
            can_sign_in=self._operator_check.has_password,
            may_act=may_act,
            acts=self._acts,
            **fields_of_view,
        )

    async def _fields_of_requests_view(
        self, looks: Looks, arguments: Mapping[str, str], figures: Figures
    ) -> dict[str, Any]:
        """Return the fields of `PageView` that only the view of requests has."""
        reference = arguments.get("request", "").strip()[:MOST_SEARCH_CHARACTERS]
        wanted = {name: arguments.get(name, "").strip()[:MOST_SEARCH_CHARACTERS] for name in SEARCH_FIELDS}
        steps = await looks.find_requests(reference) if reference else ()
        return {
            "reference": reference,
            "timeline_rows": activity.timeline(steps, figures.at_ms),
            "answer_rows": activity.newest_answers(await looks.steps.newest(), wanted, MOST_ANSWER_ROWS),
            "wanted": wanted,
        }


def _html_response(html: str) -> Response:
    return Response(html, content_type="text/html; charset=utf-8", headers=HEADERS)


def _known_view(name: str) -> str:
    """Return the name of a view. Raises NotFound for any other name."""
    if name not in VIEWS:
        raise NotFound
    return name


def _view_of_referer(referer: str) -> str:
    """Return the path of the view that a browser comes from, or that of the dead letters if it comes from elsewhere."""
    match = _REFERER.fullmatch(referer)
    return match["path"] if match and match["view"] in VIEWS else "/mesh/dead"
