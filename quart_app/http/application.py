"""Quart as it is used here: bounds on what clients occupy, request ids, metrics, a log line per request.

Where Quart lets an application choose a class, the class here does less work for the same answer.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

import msgspec
import structlog
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Quart, Request, Response
from quart.asgi import ASGIHTTPConnection
from quart.ctx import RequestContext
from quart.globals import request_ctx
from quart.json.provider import DefaultJSONProvider
from quart.routing import QuartMap
from quart.sessions import NullSession, SessionInterface
from quart.typing import ResponseReturnValue, ResponseTypes
from quart.utils import encode_headers
from quart.wrappers import BaseRequestWebsocket
from quart.wrappers.request import Body
from quart.wrappers.response import DataBody
from werkzeug.datastructures import Authorization
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.routing import MapAdapter

from mesh.requests import tracing
from quart_app.http import journey, problems
from quart_app.http.clients import Clients, Occupancy
from quart_app.http.metrics import Requests
from quart_app.http.problems import Problem, ProblemResponse
from quart_app.http.protection import HEADERS, POLICY, Hosts
from quart_app.settings import AppSettings

log = structlog.get_logger(__name__)

#: Lines about failed requests in a second; an overload is a thousand failures, and one reason.
WARNINGS_PER_S = 20
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class _Exchange(ASGIHTTPConnection):
    """A request and its answer in the server's own task, beside a task that listens; a client that leaves ends both.

    Quart's own class starts a second task for the answer, and leaves it running when the server ends the exchange.
    """

    app: Application

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = cast("_Request", self._create_request_from_scope(send))
        forwarded_for = request.headers.getlist("X-Forwarded-For")
        if forwarded_for:
            peer = request.remote_addr or ""
            request.remote_addr = self.app.clients.proxies.client(peer, forwarded_for)
        body = request.body
        body.charge(self.app.clients.bodies, request.remote_addr or "")
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
            await asyncio.sleep(0)  # Hypercorn has sent the end of the exchange; reading it costs less than a cancel.
        except asyncio.CancelledError:
            if not gone or answering.uncancel():
                raise
        finally:
            ended = True
            listening.cancel()
            body.discharge()

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        """Send the answer in two messages if its whole body is known; Quart sends a third one for the end."""
        body = response.response
        if not isinstance(body, DataBody):
            await super()._send_response(send, response)
            return
        headers = encode_headers(response.headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body.data[body.begin : body.end], "more_body": False})


class _Body(Body):
    """A request body that is bounded as a whole, and whose bytes are counted until the request is answered.

    Quart's bound holds for what waits to be read, so a body of chunks that is read as it arrives has none.
    """

    _occupied: Occupancy | None = None
    _source = ""
    _arrived = 0

    def charge(self, occupied: Occupancy, source: str) -> None:
        """Count the bytes that arrive from now on."""
        self._occupied, self._source = occupied, source

    def discharge(self) -> None:
        """Give the counted bytes back; later ones are dropped."""
        if self._occupied is not None and self._arrived:
            self._occupied.give_back(self._source, self._arrived)
        self._occupied, self._arrived = None, 0

    def append(self, data: bytes) -> None:
        if not data or self._must_raise is not None or self._occupied is None:
            return
        if self._max_content_length is not None and self._arrived + len(data) > self._max_content_length:
            self._refuse(RequestEntityTooLarge())
        elif not self._occupied.take(self._source, len(data)):
            self._refuse(
                Problem(503, "too many bytes of request bodies are in progress; retry after 1 s", retry_after=1)
            )
        else:
            self._arrived += len(data)
            super().append(data)

    async def __anext__(self) -> bytes:
        """Return what has arrived. A refusal that comes while we wait would look like the end of the body to Quart."""
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            if self._must_raise is not None:
                raise self._must_raise from None
            raise

    def _refuse(self, error: Exception) -> None:
        self._must_raise = error
        self.clear()
        self.set_complete()


class _Request(Request):
    """A request whose headers can always be read, and which looks up the blueprints of its route once.

    `remote_addr` is the address of the client, behind trusted proxies, too.
    """

    body: _Body
    body_class = _Body

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
    """Routes that do not depend on the host, so that its name is not taken apart for subdomains."""

    def bind_to_request(
        self, request: BaseRequestWebsocket, subdomain: str | None, server_name: str | None
    ) -> MapAdapter:
        query = request.query_string.decode()
        return self.bind(request.host, request.root_path, "", request.scheme, request.method, request.path, query)


class _NoSessions(SessionInterface):
    """One empty session for all requests: nothing here uses Quart's sessions."""

    _session = NullSession()

    async def open_session(self, app: Quart, request: BaseRequestWebsocket) -> NullSession:
        return self._session


class _Json(DefaultJSONProvider):
    """Encodes answers with msgspec, the keys in the order given."""

    sort_keys = False

    def __init__(self, app: Quart) -> None:
        super().__init__(app)
        self._encode = msgspec.json.Encoder(enc_hook=self.default).encode

    def response(self, *args: Any, **kwargs: Any) -> Response:
        content = self._encode(self._prepare_response_obj(args, kwargs))
        return Response(content + b"\n", content_type=self.mimetype)


class _Rate:
    """So many events in each second; the others are counted."""

    def __init__(self, most_per_s: int) -> None:
        self.suppressed = 0
        self._most = most_per_s
        self._second = 0
        self._count = 0

    def allows(self, now_s: float) -> bool:
        """Return whether one more event is allowed at this time; count it if it is not."""
        if int(now_s) != self._second:
            self._second, self._count = int(now_s), 0
        self._count += 1
        if self._count > self._most:
            self.suppressed += 1
            return False
        return True

    def take_suppressed(self) -> int:
        """Return how many events were not allowed since the last call."""
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed


class Application(Quart):
    """The routes of one port. `leaving` returns whether clients should open their next connection elsewhere."""

    asgi_http_class = _Exchange
    json_provider_class = _Json
    request_class = _Request
    session_interface = _NoSessions()  # type: ignore[assignment]
    url_map_class = _Routes

    def __init__(self, name: str, settings: AppSettings, requests: Requests, leaving: Callable[[], bool]) -> None:
        super().__init__(name, static_folder=None)
        self.clients = Clients(settings)
        self._hosts = Hosts(settings)
        self._requests = requests
        self._warnings = _Rate(WARNINGS_PER_S)
        self._leaving = leaving
        self.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
        self.config["BODY_TIMEOUT"] = settings.body_timeout_ms / 1000
        self.config["RESPONSE_TIMEOUT"] = None
        problems.install(self)

    def expect_requests(self) -> None:
        """Begin the metrics of every route; call this once all routes are there."""
        for rule in self.url_map.iter_rules():
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                self._requests.expect(method, rule.rule)

    async def handle_request(self, request: Request) -> ResponseTypes:
        """Answer a request, errors included: add the headers of every answer, count the request, log it.

        This wraps Quart's own method, because each hook would have to look up request, answer and route again.
        """
        begun = time.perf_counter()
        given = request.headers.get("X-Request-ID", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        trail: list[tuple[str, Mapping[str, str]]] = []
        tracing.CALL.set(request_id)
        tracing.TRACEPARENT.set(tracing.valid_traceparent(request.headers.get("traceparent", "")))
        tracing.TRAIL.set(trail)
        response = await (self._answer_in_span(request) if tracing.is_on() else super().handle_request(request))
        response.headers["X-Request-ID"] = request_id
        if trail:
            response.headers.extend(journey.headers_for(trail, time.perf_counter() - begun))
        if POLICY in response.headers:
            response.headers["X-Content-Type-Options"] = "nosniff"
        else:
            response.headers.extend(HEADERS)
        if self._leaving():
            response.headers["Connection"] = "close"
        route = "none" if request.url_rule is None else request.url_rule.rule
        seconds = time.perf_counter() - begun
        self._requests.count(request.method, route, response.status_code, seconds)
        self._log(request.method, route, response, seconds)
        return response

    async def _answer_in_span(self, request: Request) -> ResponseTypes:
        about = {"http.request.method": request.method, "url.path": request.path, "url.scheme": request.scheme}
        with tracing.span("SERVER", request.method, about) as span:
            response = await super().handle_request(request)
            if request.url_rule is not None:
                span.update_name(f"{request.method} {request.url_rule.rule}")
                span.set_attribute("http.route", request.url_rule.rule)
            span.set_attribute("http.response.status_code", response.status_code)
        return response

    def _log(self, method: str, route: str, response: ResponseTypes, seconds: float) -> None:
        """Log the request, never by path: a path may name a person. Failures of ours are warnings, up to a rate."""
        status = response.status_code
        facts: dict[str, Any] = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
        if isinstance(response, ProblemResponse):
            facts["detail"] = response.detail
        if status < 500:
            log.debug("request", **facts)
        elif self._warnings.allows(time.monotonic()):
            if self._warnings.suppressed:
                facts["suppressed"] = self._warnings.take_suppressed()
            log.warning("request", **facts)

    async def preprocess_request(self, request_context: RequestContext | None = None) -> ResponseReturnValue | None:
        """Refuse requests that are meant for another host, whatever their path."""
        request = (request_context or request_ctx).request
        self._hosts.check(request.headers.get("Host", ""))
        return await super().preprocess_request(request_context)
