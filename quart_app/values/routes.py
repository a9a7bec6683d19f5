"""The routes GET /classes, POST /values and GET /values/{prime}: parse, call, present."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from pydantic import RootModel
from quart import Blueprint, Response, jsonify, request
from quart_schema import document_headers, document_querystring, document_request, document_response, tag

from mesh import DeadlineExceeded
from mesh.raw import Answer, Ask
from quart_app.http.body import read_items
from quart_app.http.problems import Problem, from_mesh
from quart_app.service import Context
from quart_app.values import asking, hard_values, preferences
from quart_app.values.answers import Array, Responses
from quart_app.values.budget import Budget
from quart_app.values.chunks import Chunks
from quart_app.values.finding import SharedGathers
from quart_app.values.job_routes import JobRoutes
from quart_app.values.models import ClassesList, ItemsReader, JobBegun, Page, PreferHeader, SetValueResponse
from quart_app.values.notation import is_small
from quart_app.values.pace import Pace
from quart_app.values.pool import FactorPool
from quart_app.values.search import Question, Search
from quart_app.values.settings import ValuesSettings

#: Large values share a request up to this number of bytes in its commit (see `chunks.most_commit_bytes`). A value whose
#: own commit is larger gets a request of its own. The bound saves memory: a replica may have `MESH_CONCURRENCY` commits
#: in memory at once. With a smaller bound, more requests are sent.
LARGE_CHUNK_BYTES = 1 << 19
#: The most values not stored that a problem document names, and the most digits that these values have together. So the
#: document stays short. If it leaves values out, it has the number of all of them.
MOST_NAMED_VALUES, MOST_NAMED_DIGITS = 1000, 20_000
#: The Retry-After of a strict GET that needs databases whose replica is no longer expected back. It is long, because
#: such a database needs a new replica first.
STRICT_RETRY_AFTER_S = 30
#: A number with more digits is shortened in an error text, to its first 20 digits.
MOST_SHOWN_DIGITS = 40

_tagged = tag(["values"])


class ValuesRoutes:
    """One method per route."""

    def __init__(
        self, context: Context, settings: ValuesSettings, pool: FactorPool, pace: Pace, responses: Responses
    ) -> None:
        self._context = context
        self._settings = settings
        self._pool = pool
        self._pace = pace
        self._responses = responses
        self._gathers = SharedGathers()
        self._small_puts = asking.SmallPuts(pace)
        self._items_reader = ItemsReader(settings)
        # A POST beyond this budget is refused with Retry-After: 2 (seconds). With less, clients ask more often in vain;
        # with more, the budget is unused for longer.
        self._digits_budget = Budget(settings.large_digits, "digits of large values", 2)
        self._jobs = JobRoutes(context, settings, pace, responses)
        self.blueprint = Blueprint("values", __name__)
        self.blueprint.register_error_handler(DeadlineExceeded, _deadline_response)
        self.blueprint.add_url_rule("/classes", "classes", self.classes, methods=["GET"])
        self.blueprint.add_url_rule("/values", "create_values", self._make_create_route(), methods=["POST"])
        self.blueprint.add_url_rule("/values/<prime>", "find_values", self.find, methods=["GET"])
        self.blueprints = [self.blueprint, self._jobs.blueprint]

    @_tagged
    @document_response(ClassesList)
    async def classes(self) -> Response:
        """The classes that have a live replica, or one that is expected back."""
        classes = await self._context.mesh.classes()
        return jsonify(sorted(classes.live | classes.expected))

    def _make_create_route(self) -> Callable[[], Coroutine[Any, Any, Response]]:
        """Return the route of POST /values, whose documentation depends on the settings."""

        @_tagged
        @document_headers(PreferHeader)
        # mypy does not know the type: it is made when the service starts.
        @document_request(RootModel[self._items_reader.request_type])  # type: ignore[name-defined]
        @document_response(SetValueResponse)
        @document_response(JobBegun, 202)
        async def create_values() -> Response:
            """Factorise values and keep each with a replica of its class for its time to live."""
            return await self._create()

        return create_values

    async def _create(self) -> Response:
        """Answer POST /values."""
        # Without a number of bytes, this only refuses the request with Busy if Redis is full.
        self._context.mesh.memory.store()
        items = await read_items(self._items_reader, self._settings.max_items, self._items_reader.decode)
        if items and preferences.is_async():
            return await self._jobs.begin(items)
        factors = await self._put(items)
        array = Array()
        await array.extend([(item.value, factors[item.value]) for item in items], self._pace)
        return self._responses.respond(array)

    @_tagged
    @document_headers(PreferHeader)
    @document_querystring(Page)
    @document_response(SetValueResponse)
    async def find(self, prime: str) -> Response:
        """Every value that has this prime as a factor, ascending; `limit` and `after` choose a page.

        The header `Missing-Databases` names databases that hold data and have no replica, so that their values are not
        in the answer. With `Prefer: handling=strict`, the answer is then 503.
        """
        time_limit_ms, settings = self._read_time_limit_ms(), self._settings
        number = await self._checked_prime(prime, time_limit_ms)
        # Most requests have no query string. `request.args` would parse even an empty one, which costs time.
        arguments = request.args if request.query_string else {}
        limit_text = self._number_argument(arguments, "limit", settings.max_answer)
        after_text = self._number_argument(arguments, "after", 0)
        # "0" becomes "", the `after` of all values: there is no value below 1.
        question = Question(
            number, after_text.lstrip("0"), int(limit_text or settings.max_answer), settings.max_answer_bytes
        )
        search = Search(self._context.mesh.replica, self._gathers, self._pace, self._responses, question, time_limit_ms)
        result = await search.run()
        if result.has_more and not limit_text:
            raise _too_long_problem(number, settings)
        if result.left_out and preferences.is_strict():
            raise _incomplete_problem(result.left_out)
        response = self._responses.respond(result.array)
        if result.left_out:
            response.headers["Missing-Databases"] = _as_text(result.left_out)
        if result.has_more:
            response.headers["Link"] = f'</values/{number}?limit={limit_text}&after={result.last_value}>; rel="next"'
        return response

    async def _checked_prime(self, text: str, time_limit_ms: int) -> str:
        """Return the prime of the path without leading zeros. Raises Problem if the text is not a prime number."""
        if not (text.isascii() and text.isdigit()) or len(text) > self._settings.max_digits:
            raise Problem(422, f"the prime must be a number of at most {self._settings.max_digits} digits")
        number = text.lstrip("0") or "0"
        if not await self._pool.is_prime(int(number), time_limit_ms / 1000):
            raise Problem(422, f"{_shortened(number)} is not a prime number")
        return number

    def _number_argument(self, arguments: Mapping[str, str], name: str, most: int) -> str:
        """Return a number of the query string as text, "" if the query has none of this name. Raises Problem.

        The number must be from 1 to `most`. If `most` is 0, the number has no bounds, and may be 0.
        """
        text = arguments.get(name)
        if text is None:
            return ""
        if not (text.isascii() and text.isdigit()) or len(text) > self._settings.max_digits:
            raise Problem(422, f"{name} must be a number of at most {self._settings.max_digits} digits")
        if most and not 1 <= int(text) <= most:
            raise Problem(422, f"{name} must be a number from 1 to {most}")
        return text

    def _read_time_limit_ms(self) -> int:
        """Return how long the current request may take (ms)."""
        return read_time_limit_ms(self._context)

    async def _put(self, items: Sequence[Any]) -> dict[str, str]:
        """Return the factors of every value once all are stored. If items have the same value, the last one counts."""
        if not items:
            return {}
        # Every POST that begins no job waits here for its turn of the event loop. So requests that come together do not
        # block the loop; code that handles many values calls `pace` again between its pieces.
        await self._pace()
        replica, time_limit_ms = self._context.mesh.replica, self._read_time_limit_ms()
        # Most POSTs have one small value. Such values share requests with those of other clients. They need no chunks
        # and no budget, which counts only large values. The result and the errors are as below.
        if len(items) == 1 and is_small((item := items[0]).value):
            factors, answers = await self._small_puts.put(replica, item, time_limit_ms)
            if item.value not in factors:
                raise _not_stored_problem(answers, [item.value])
            return factors
        item_by_value = {item.value: item for item in items}
        asks = await self._make_asks(item_by_value)
        with self._digits_budget.lent(sum(len(value) for value in item_by_value if not is_small(value))):
            factors, answers = await asking.put(replica, asks, item_by_value, time_limit_ms, self._pace)
        not_stored = [value for value in item_by_value if value not in factors]
        if not_stored:
            raise _not_stored_problem(answers, not_stored)
        return factors

    async def _make_asks(self, item_by_value: Mapping[str, Any]) -> list[Ask]:
        """Return requests to the classes, each for a chunk of values."""
        chunks = Chunks(self._settings.chunk, LARGE_CHUNK_BYTES)
        await chunks.extend(item_by_value.values(), self._pace)
        return [hard_values.ask_for_chunk(cls, chunk) for cls, chunk in chunks.all]


def read_time_limit_ms(context: Context) -> int:
    """Return how long the current request may take (ms).

    A client may ask for a time with `Prefer: wait=N` (seconds), up to the setting `max_wait_ms`. Otherwise the mesh's
    setting `deadline_ms` is the time; it is a span of time, too.
    """
    wait_ms = preferences.read_wait_ms()
    if wait_ms is None:
        return context.mesh.settings.deadline_ms
    return max(1, min(wait_ms, context.settings.max_wait_ms))


def _not_stored_problem(answers: Sequence[Answer], not_stored: list[str]) -> Problem:
    """Return the problem that says why these values were not stored.

    The problem is about a missed deadline only if no answer has another error. Its member `missing` names the values.
    """
    errors = [answer.error for answer in answers if answer.error is not None]
    first_other_error = next((error for error in errors if not isinstance(error, DeadlineExceeded)), None)
    problem = from_mesh(first_other_error or (errors[0] if errors else DeadlineExceeded()))
    named_values: list[int] = []
    digit_count = 0
    for value in not_stored[:MOST_NAMED_VALUES]:
        digit_count += len(value)
        if named_values and digit_count > MOST_NAMED_DIGITS:
            break
        named_values.append(int(value))
    problem.facts["missing"] = named_values
    if len(named_values) < len(not_stored):
        problem.facts["missing_count"] = len(not_stored)
    return preferences.with_advice(problem)


async def _deadline_response(error: DeadlineExceeded) -> Response:
    """Return the response to a request that missed its deadline."""
    return preferences.with_advice(from_mesh(error)).response()


def _too_long_problem(prime: str, settings: ValuesSettings) -> Problem:
    """Return the problem of an answer that is too long, for a client that did not ask for pages."""
    bound = f"{settings.max_answer} values or {settings.max_answer_bytes} bytes"
    page = f"?limit={min(1000, settings.max_answer)}"
    return Problem(
        422,
        f"the answer has more than {bound}; ask for pages with {page}; the Link header of each page has the "
        f"address of the next one ({page}&after=<last value>)",
        next=f"/values/{prime}{page}",
    )


def _as_text(databases: Sequence[int]) -> str:
    return ", ".join(map(str, databases))


def _incomplete_problem(databases: list[int]) -> Problem:
    """Return the problem for a strict GET whose answer would leave databases out."""
    detail = f"databases that hold data have no replica: {_as_text(databases)}; without handling=strict the answer"
    return Problem(503, f"{detail} leaves them out", retry_after=STRICT_RETRY_AFTER_S, missing=databases)


def _shortened(number: str) -> str:
    """Return a number for an error text, shortened if it is long."""
    return number if len(number) <= MOST_SHOWN_DIGITS else f"{number[:20]}… ({len(number)} digits)"
