"""A request as Quart sees it: its headers, and its body, which is counted and bounded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import cached_property, lru_cache
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, HTTPScope
from quart import Request as QuartRequest
from quart.wrappers.request import Body
from werkzeug.datastructures import Authorization, Headers, ImmutableHeadersMixin
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from quart_app.http.clients import Occupancy
from quart_app.http.preferences import preferences
from quart_app.http.problems import Problem

#: An extension of ASGI that our server has: a function that returns whether the whole body has arrived.
BODY_HAS_ARRIVED = "quart_app.has_arrived"


class RequestBody(Body):
    """A request body. Its bytes are received when they are read, and are counted until the request is answered.

    The bound (MAX_CONTENT_LENGTH) holds for the whole body. In Quart's own class it holds only for the bytes that wait
    to be read. So a body of chunks has no bound there if it is read while it arrives. Quart also uses a task to receive
    the body. Four attributes are Quart's:

        _data                  the bytes that have arrived and were not taken out
        _complete              set at the end of the body, or when it is refused
        _must_raise            the error of the refusal; None: the body was not refused
        _max_content_length    the bound; None: there is none
    """

    _receive: ASGIReceiveCallable
    #: returns whether the whole body has arrived; False with a server that lacks the extension BODY_HAS_ARRIVED
    _ask_has_arrived: Callable[[], bool] = staticmethod(lambda: False)
    #: counts the bytes of all bodies on one port; None before `start_counting` and after `stop_counting`
    _occupancy: Occupancy | None = None
    #: whose bytes these are: the address of the client
    _source = ""
    #: how many bytes of the body are counted in `_occupancy`
    _arrived_byte_count = 0

    def start_counting(self, receive: ASGIReceiveCallable, scope: HTTPScope, occupancy: Occupancy, source: str) -> None:
        """Set the function that receives the body. Count its bytes in `occupancy`, as those of the address `source`.

        The application calls `start_counting` before it handles a request, and `stop_counting` in a `finally` after the
        answer. So the count ends on every path, also after an error or a cancellation.
        """
        self._receive, self._occupancy, self._source = receive, occupancy, source
        extensions: Any = scope.get("extensions") or {}
        self._ask_has_arrived = extensions.get(BODY_HAS_ARRIVED, self._ask_has_arrived)

    def has_arrived(self) -> bool:
        """Return whether the whole body has arrived. Then it can be read without a timer, because no read waits."""
        return self._ask_has_arrived()

    def stop_counting(self) -> None:
        """End the count of this body, whose request is answered. Bytes that arrive later are dropped."""
        if self._occupancy is not None and self._arrived_byte_count:
            self._occupancy.vacate(self._source, self._arrived_byte_count)
        self._occupancy, self._arrived_byte_count = None, 0

    def append(self, data: bytes) -> None:
        # `_receive_part` calls this, and it needs the function that `start_counting` sets. So `_occupancy` is None only
        # after `stop_counting`, when the request is answered.
        if not data or self._must_raise is not None or self._occupancy is None:
            return
        if self._max_content_length is not None and self._arrived_byte_count + len(data) > self._max_content_length:
            self._refuse(RequestEntityTooLarge())
        elif not self._occupancy.occupy(self._source, len(data)):
            self._refuse(
                Problem(503, "too many bytes of request bodies are in progress; retry after 1 s", retry_after=1)
            )
        else:
            self._arrived_byte_count += len(data)
            super().append(data)

    async def __anext__(self) -> bytes:
        """Return the bytes that have arrived, or wait for some. Raises the error with which the body was refused."""
        while True:
            if self._must_raise is not None:
                raise self._must_raise
            if self._data:
                data = bytes(self._data)
                self._data.clear()
                return data
            if self._complete.is_set():
                raise StopAsyncIteration
            await self._receive_part()

    def __await__(self) -> Generator[Any, None, bytes]:
        while not self._complete.is_set() and self._must_raise is None:
            yield from self._receive_part().__await__()
        if self._must_raise is not None:
            raise self._must_raise
        return bytes(self._data)

    async def read_and_clear(self) -> bytes:
        """Return the whole body, and keep no copy of it."""
        data: bytes = await self
        self.clear()
        return data

    async def _receive_part(self) -> None:
        """Receive the next part of the body from the server, or wait for it."""
        message = await self._receive()
        if message["type"] != "http.request":
            # The client has hung up in the middle of the body.
            self._refuse(BadRequest("the body has no end"))
            return
        self.append(message["body"])
        if not message["more_body"]:
            self.set_complete()

    def _refuse(self, error: Exception) -> None:
        self._must_raise = error
        self.clear()
        self.set_complete()


class HttpRequest(QuartRequest):
    """A request whose headers can always be read, and which looks up the blueprints of its route once.

    `remote_addr` is the address of the client, even if the request came through trusted proxies.
    """

    body: RequestBody
    body_class = RequestBody

    @cached_property
    def authorization(self) -> Authorization | None:
        """The credentials; None if there are none or they cannot be read.

        Werkzeug 3.1 raises ValueError for characters beyond ASCII in Basic credentials.
        """
        try:
            return super().authorization
        except ValueError:
            return None

    @cached_property
    def blueprints(self) -> list[str]:
        return super().blueprints

    @cached_property
    def preferred(self) -> Mapping[str, str]:
        """What the client prefers; see `preferences`."""
        return preferences(self.headers.getlist("Prefer"))


# `type: ignore`: the two bases declare methods of one name with different types.
class _Headers(ImmutableHeadersMixin, Headers):  # type: ignore[misc]
    """Headers that nothing changes, and that need no check, because the HTTP parser has checked them.

    They are looked up in a dictionary. Werkzeug's own class compares the names of all headers at each look-up, and
    raises an exception inside if the header is not there.
    """

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._list = pairs
        #: name in lower case -> the first value of that name
        # The pairs are reversed, because a dictionary keeps the last value of a name.
        self._first_values = {_in_lower_case(name): value for name, value in reversed(pairs)}

    # `type: ignore`: Werkzeug declares several overloads of `get`, and this one method serves all of them.
    def get(self, key: str, default: Any = None, type: Any = None) -> Any:  # type: ignore[override]
        return self._first_values.get(key.lower(), default) if type is None else super().get(key, default, type)

    def getlist(self, key: str, type: Any = None) -> list[Any]:
        return super().getlist(key, type) if key in self else []

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._first_values


# The same few names come with every request. So `_in_title_case` and `_in_lower_case` keep each name in title case and
# in lower case. A client can invent names, hence the maximum. With a smaller one, invented names push the usual ones
# out sooner; with a larger one, they take more memory.
@lru_cache(maxsize=1024)
def _in_title_case(name: bytes) -> str:
    return name.decode("latin1").title()


_in_lower_case = lru_cache(maxsize=1024)(str.lower)


def headers_of(scope: HTTPScope) -> Headers:
    """Return the headers of a request, and the header Remote-Addr, in which Quart looks for the client's address."""
    client = scope.get("client")
    # Quart's own conversion of a scope gives "<local>" and names in title case, too.
    pairs = [("Remote-Addr", client[0] if client else "<local>")]
    pairs += [(_in_title_case(name), value.decode("latin1")) for name, value in scope["headers"]]
    return _Headers(pairs)
