"""Quart as it is used here: bounds on what clients occupy, request ids, metrics, a log line per request.

The classes here replace classes of Quart and do less work for the same answer. They leave out what nothing here uses:
sessions, signals, functions for the end of a request, subdomains.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
import structlog
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Quart, Response
from quart import Request as QuartRequest
from quart.asgi import ASGIHTTPConnection
from quart.ctx import AppContext, RequestContext
from quart.globals import _cv_app, _cv_request, request_ctx
from quart.json.provider import DefaultJSONProvider
from quart.routing import QuartMap, QuartRule
from quart.sessions import NullSession
from quart.typing import ResponseTypes
from quart.utils import cancel_tasks, encode_headers, raise_task_exceptions
from quart.wrappers import BaseRequestWebsocket
from quart.wrappers.response import DataBody
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from mesh import tracing
from quart_app.http import journey, problems
from quart_app.http.clients import ClientUsage
from quart_app.http.metrics import RequestMetrics
from quart_app.http.problems import ProblemResponse
from quart_app.http.protection import AllowedHosts, protect
from quart_app.http.request import HttpRequest, headers_of
from quart_app.http.request_log import RequestLog
from quart_app.settings import AppSettings

log = structlog.get_logger(__name__)

#: The request ids that are accepted from clients. A request with any other X-Request-ID gets a new id: its own would go
#: unchanged into the log, into entries, and into a header of the answer. A longer id would make each of these longer.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class _RequestTask(ASGIHTTPConnection):
    """Answers one request in one task, which our server cancels when the client has gone.

    Quart's own class starts two tasks, one of which waits for the client to go.
    """

    app: Application

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = cast("HttpRequest", self._create_request_from_scope(send))
        forwarded_for = request.headers.getlist("X-Forwarded-For")
        if forwarded_for:
            peer_address = request.remote_addr or ""
            request.remote_addr = self.app.client_usage.proxies.client_address(peer_address, forwarded_for)
        body = request.body
        body.start_counting(receive, self.scope, self.app.client_usage.bodies, request.remote_addr or "")
        try:
            response = await self.app.handle_request(request)
            if isinstance(response.response, DataBody):
                await self._send_whole(send, response, response.response)
            else:
                await self._send_stream(receive, send, response)
        finally:
            body.stop_counting()

    def _create_request_from_scope(self, send: ASGISendCallable) -> QuartRequest:
        scope, config = self.scope, self.app.config
        headers = headers_of(scope)
        path = scope["path"]
        return self.app.request_class(
            scope["method"],
            scope["scheme"],
            path if path[0] == "/" else urlsplit(path).path,  # a request may name a whole URL
            scope["query_string"],
            headers,
            "",  # no root path: the application is not mounted below another
            scope["http_version"],
            scope,
            max_content_length=config["MAX_CONTENT_LENGTH"],
            body_timeout=config["BODY_TIMEOUT"],
            send_push_promise=_no_push,
        )

    async def _send_whole(self, send: ASGISendCallable, response: ResponseTypes, answer_body: DataBody) -> None:
        """Send an answer whose body is complete in two messages; Quart sends a third one for the end."""
        headers = encode_headers(response.headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send(
            {
                "type": "http.response.body",
                "body": answer_body.data[answer_body.begin : answer_body.end],
                "more_body": False,
            }
        )

    async def _send_stream(self, receive: ASGIReceiveCallable, send: ASGISendCallable, response: ResponseTypes) -> None:
        """Send an answer that may have no end, until its client has gone.

        Our server then cancels the request. Another server only sends `http.disconnect`, which this method waits for.
        """

        async def wait_until_client_leaves() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = {
            asyncio.ensure_future(self._send_response(send, response)),
            asyncio.ensure_future(wait_until_client_leaves()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            raise_task_exceptions(done)
        except Exception:
            # The client has the status already, and only sees that the connection ends. So the log must have the error.
            log.exception("an answer ended in the middle")
            raise
        finally:
            await cancel_tasks(tasks)


async def _no_push(path: str, headers: Headers) -> None:
    """Do nothing, because HTTP/1.1 has no push."""


class _Context(RequestContext):
    """Quart's context of a request, without signals and without functions for the end of a request.

    `__init__` replaces Quart's own, and sets the attributes that Quart reads.
    """

    def __init__(self, app: Application, request: HttpRequest) -> None:
        self.app = app
        self.request_websocket = request
        self.session = _NO_SESSION
        self.flashes = None
        self.preserved = False
        self._after_request_functions = []
        request.json_module = app.json
        app.find_route(request)

    @cached_property
    def url_adapter(self) -> MapAdapter | None:  # type: ignore[override]  # Quart has a plain attribute here
        return self.app.create_url_adapter(self.request)

    async def push(self) -> None:
        # `pop` needs the tokens to restore the former contexts.
        self._tokens = _cv_request.set(self), _cv_app.set(AppContext(self.app))

    async def pop(self, exc: BaseException | None = None) -> None:
        request_token, app_token = self._tokens
        _cv_app.reset(app_token)
        _cv_request.reset(request_token)


class _EndpointFunctions:
    """The functions that answer requests to one endpoint: its view, and what its blueprints run before and after it.

    Their order is Quart's: the application's own functions (None below) run first before the view, and last after it.
    """

    def __init__(self, app: Application, request: HttpRequest) -> None:
        blueprint_names = request.blueprints
        self.before = [
            app.ensure_async(function)
            for name in (None, *reversed(blueprint_names))
            for function in app.before_request_funcs[name]
        ]
        self.after = [
            app.ensure_async(function)
            for name in (*blueprint_names, None)
            for function in reversed(app.after_request_funcs[name])
        ]
        self.view = app.ensure_async(app.view_functions[cast("str", request.endpoint)])


class _HostlessRouteMap(QuartMap):
    """Routes that do not depend on the host. So the name of the host is not searched for a subdomain."""

    def bind_to_request(
        self, request: BaseRequestWebsocket, subdomain: str | None, server_name: str | None
    ) -> MapAdapter:
        query = request.query_string.decode()
        return self.bind(request.host, request.root_path, "", request.scheme, request.method, request.path, query)


#: The session of all requests: nothing here uses Quart's sessions.
_NO_SESSION = NullSession()


class _MsgspecJsonProvider(DefaultJSONProvider):
    """Encodes answers with msgspec, the keys in the order given."""

    sort_keys = False

    def __init__(self, app: Quart) -> None:
        super().__init__(app)
        self._encode = msgspec.json.Encoder(enc_hook=self.default).encode

    def response(self, *args: Any, **kwargs: Any) -> Response:
        content = self._encode(self._prepare_response_obj(args, kwargs))
        return Response(content + b"\n", content_type=self.mimetype)


class Application(Quart):
    """The application of one port. `is_leaving` returns whether clients should open their next connection elsewhere.

    Quart and `app.create_app` call its methods.
    """

    asgi_http_class = _RequestTask
    json_provider_class = _MsgspecJsonProvider
    request_class = HttpRequest
    url_map_class = _HostlessRouteMap

    def __init__(
        self, name: str, settings: AppSettings, request_metrics: RequestMetrics, is_leaving: Callable[[], bool]
    ) -> None:
        super().__init__(name, static_folder=None)
        self.client_usage = ClientUsage(settings)
        self._allowed_hosts = AllowedHosts(settings)
        self._request_metrics = request_metrics
        self._request_log = RequestLog()
        self._is_leaving = is_leaving
        #: the two parts of the ids that are made for requests without a valid X-Request-ID
        self._id_prefix, self._id_numbers = secrets.token_hex(4), itertools.count(1)
        self.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
        self.config["BODY_TIMEOUT"] = settings.body_timeout_ms / 1000
        self.config["RESPONSE_TIMEOUT"] = None  # a stream of the live page has no end; Quart's default is 60 s
        #: finds the routes of requests to any host (see `find_route`)
        self._route_adapter = self.url_map.bind("")
        #: endpoint (Quart's name of a view) -> the functions that answer its requests, found at its first request
        self._functions_of_endpoint: dict[str, _EndpointFunctions] = {}
        problems.install(self)

    def create_route_metrics(self) -> None:
        """Create the counters of each route's failures. Call this once all routes are registered."""
        for rule in self.url_map.iter_rules():
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:  # Quart adds these two by itself
                self._request_metrics.create_failure_counters(method, rule.rule)

    async def handle_request(self, request: QuartRequest) -> ResponseTypes:
        """Answer a request, even if it fails. Add the headers of every answer, count the request, and log it.

        This overrides Quart's method. Functions that Quart calls before and after a request could do the same, but each
        would have to look up the request and its route again.
        """
        begun_at_s = time.perf_counter()
        sent_id = request.headers.get("X-Request-ID", "")
        request_id = sent_id if REQUEST_ID.fullmatch(sent_id) else f"{self._id_prefix}{next(self._id_numbers):08x}"
        structlog.contextvars.bind_contextvars(request_id=request_id)
        # The mesh appends each reply to a call of this request here (see `journey.Trail`).
        trail: list[tuple[str, Mapping[str, str]]] = []
        tracing.CALL.set(request_id)
        tracing.TRACEPARENT.set(tracing.valid_traceparent(request.headers.get("traceparent", "")))
        tracing.TRAIL.set(trail)
        response = await (self._answer_in_span(request) if tracing.is_on() else super().handle_request(request))
        response.headers["X-Request-ID"] = request_id
        if trail:
            response.headers.extend(journey.headers_for(trail, time.perf_counter() - begun_at_s))
        protect(response.headers)
        if self._is_leaving():
            response.headers["Connection"] = "close"
        route = "none" if request.url_rule is None else request.url_rule.rule
        duration_s = time.perf_counter() - begun_at_s
        self._request_metrics.count(request.method, route, response.status_code, duration_s)
        detail, is_logged_elsewhere = (
            (response.detail, response.is_logged_elsewhere) if isinstance(response, ProblemResponse) else ("", False)
        )
        self._request_log.write(
            request.method, route, response.status_code, detail, duration_s, is_logged_elsewhere=is_logged_elsewhere
        )
        return response

    async def _answer_in_span(self, request: QuartRequest) -> ResponseTypes:
        attributes = {"http.request.method": request.method, "url.path": request.path, "url.scheme": request.scheme}
        with tracing.span("SERVER", request.method, attributes) as span:
            response = await super().handle_request(request)
            if request.url_rule is not None:
                span.update_name(f"{request.method} {request.url_rule.rule}")
                span.set_attribute("http.route", request.url_rule.rule)
            span.set_attribute("http.response.status_code", response.status_code)
        return response

    def request_context(self, request: QuartRequest) -> RequestContext:
        return _Context(self, cast("HttpRequest", request))

    def find_route(self, request: HttpRequest) -> None:
        """Set the route of a request, or the error that says why it has none.

        One adapter finds the routes for all hosts. If it finds none, an adapter for the host of this request tries
        again, because the error may be a redirect, which names the host.
        """
        request.routing_exception = None
        try:
            rule_and_arguments = self._route_adapter.match(request.path, request.method, return_rule=True)
        except HTTPException:
            try:
                rule_and_arguments = cast("MapAdapter", self.create_url_adapter(request)).match(return_rule=True)
            except HTTPException as error:
                request.routing_exception = error
                return
        # Quart's map holds Quart's rules, but the type of `match` names Werkzeug's.
        request.url_rule, request.view_args = rule_and_arguments  # type: ignore[assignment]

    async def full_dispatch_request(self, request_context: RequestContext | None = None) -> ResponseTypes:
        """Answer a request. Requests meant for another host are refused, whatever their path."""
        context = cast("_Context", request_context or request_ctx)
        request = cast("HttpRequest", context.request)
        rule = request.url_rule
        functions = (
            None if rule is None else self._functions_of_endpoint.get(rule.endpoint) or self._find_functions(request)
        )
        result: Any = None
        try:
            self._allowed_hosts.check(request.headers.get("Host", ""))
            # `dispatch_request` is Quart's. It answers a request without a route, and OPTIONS unless the route does.
            if functions is None or (request.method == "OPTIONS" and cast("QuartRule", rule).provide_automatic_options):
                result = await self.dispatch_request(context)
            else:
                for before_function in functions.before:
                    result = await before_function()
                    if result is not None:  # then this is the answer, and the view does not run
                        break
                else:
                    result = await functions.view(**(request.view_args or {}))
        except Exception as error:
            result = await self.handle_user_exception(error)
        response: Any = result if isinstance(result, Response) else await self.make_response(result)
        for after_function in (*context._after_request_functions, *(() if functions is None else functions.after)):
            response = await after_function(response)
        return cast("ResponseTypes", response)

    def _find_functions(self, request: HttpRequest) -> _EndpointFunctions:
        """Find and keep the functions that answer requests to an endpoint, because an application's routes stay."""
        functions = self._functions_of_endpoint[cast("str", request.endpoint)] = _EndpointFunctions(self, request)
        return functions
