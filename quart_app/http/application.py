"""Quart as it is used here: every request is followed, from its id to its line in the log, for little.

Where Quart lets an application name another class, it names one here that does less for the same answer.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import msgspec
import structlog
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Quart, Request, Response
from quart.asgi import ASGIHTTPConnection
from quart.json.provider import DefaultJSONProvider
from quart.routing import QuartMap
from quart.sessions import NullSession, SessionInterface
from quart.typing import ResponseTypes
from quart.utils import encode_headers
from quart.wrappers import BaseRequestWebsocket
from quart.wrappers.response import DataBody
from werkzeug.datastructures import Authorization
from werkzeug.routing import MapAdapter

from quart_app.http import problems
from quart_app.http.metrics import Requests
from quart_app.settings import AppSettings

log = structlog.get_logger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class _Exchange(ASGIHTTPConnection):
    """A request and its answer in the server's own task, beside a task that listens: a client that goes ends both.

    Quart's own class starts a task for the answer, too, and leaves it behind when the server ends the exchange.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = self._create_request_from_scope(send)
        answering = cast("asyncio.Task[None]", asyncio.current_task())
        listening = asyncio.ensure_future(self.handle_messages(request, receive))
        ended = gone = False

        def hang_up(_: asyncio.Task[None]) -> None:
            nonlocal gone
            if not ended:
                gone = True
                answering.cancel()

        listening.add_done_callback(hang_up)
        try:
            await self.handle_request(request, send)
            ended = True
            await asyncio.sleep(0)  # Hypercorn has said that this is over: to hear it is cheaper than to be cancelled.
        except asyncio.CancelledError:
            if not gone or answering.uncancel():
                raise
        finally:
            ended = True
            listening.cancel()

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        """In two messages where the whole body is there; Quart says the end of it with a third."""
        body = response.response
        if not isinstance(body, DataBody):
            await super()._send_response(send, response)
            return
        headers = encode_headers(response.headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body.data[body.begin : body.end], "more_body": False})


class _Request(Request):
    """A request whose headers can always be read, and which looks up the blueprints of its route once."""

    @cached_property
    def authorization(self) -> Authorization | None:
        """The credentials; None where there are none or they cannot be read.

        Werkzeug 3.1 raises ValueError for characters beyond ASCII in Basic credentials.
        """
        try:
            return super().authorization
        except ValueError:
            return None

    @cached_property
    def blueprints(self) -> list[str]:
        return super().blueprints


class _Routes(QuartMap):
    """Routes of every host alike: its name is read once, and not taken apart for subdomains."""

    def bind_to_request(
        self, request: BaseRequestWebsocket, subdomain: str | None, server_name: str | None
    ) -> MapAdapter:
        query = request.query_string.decode()
        return self.bind(request.host, request.root_path, "", request.scheme, request.method, request.path, query)


class _NoSessions(SessionInterface):
    """Quart's own sessions, which nothing here uses: one empty one for all."""

    _session = NullSession()

    async def open_session(self, app: Quart, request: BaseRequestWebsocket) -> NullSession:
        return self._session


class _Json(DefaultJSONProvider):
    """Writes answers by the quickest encoder there is; the keys in the order that they were given."""

    sort_keys = False

    def __init__(self, app: Quart) -> None:
        super().__init__(app)
        self._encode = msgspec.json.Encoder(enc_hook=self.default).encode

    def response(self, *args: Any, **kwargs: Any) -> Response:
        content = self._encode(self._prepare_response_obj(args, kwargs))
        return Response(content + b"\n", content_type=self.mimetype)


class Application(Quart):
    """The routes of one port. `leaving` says whether clients had better open their next connection elsewhere."""

    asgi_http_class = _Exchange
    json_provider_class = _Json
    request_class = _Request
    session_interface = _NoSessions()  # type: ignore[assignment]
    url_map_class = _Routes

    def __init__(self, name: str, settings: AppSettings, requests: Requests, leaving: Callable[[], bool]) -> None:
        super().__init__(name, static_folder=None)
        self._requests = requests
        self._leaving = leaving
        self.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
        self.config["BODY_TIMEOUT"] = settings.body_timeout_ms / 1000
        self.config["RESPONSE_TIMEOUT"] = None
        problems.install(self)

    async def handle_request(self, request: Request) -> ResponseTypes:
        """Answer, errors included: the request's id in and out, `Connection: close` when leaving, metrics, a log line.

        It stands around Quart's own method: hooks have to find request, answer and route by themselves, each time anew.
        """
        begun = time.perf_counter()
        given = request.headers.get("X-Request-ID", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = await super().handle_request(request)
        response.headers["X-Request-ID"] = request_id
        if self._leaving():
            response.headers["Connection"] = "close"
        route = "none" if request.url_rule is None else request.url_rule.rule
        self._requests.count(request.method, route, response.status_code, time.perf_counter() - begun)
        say = log.warning if response.status_code >= 500 else log.debug
        say("request", method=request.method, route=route, status=response.status_code)
        return response
