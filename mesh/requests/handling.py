"""Tools to run handlers, which may raise anything and may block the event loop.

A handler runs until it waits for the first time; many handlers never wait. If one waits, `RemainingSteps` runs the rest
of it, and measures how long a step blocks the event loop. One task runs the whole handler: it makes the first step with
`steps_of(…).send(None)`, and awaits a RemainingSteps for the others.

`describe` turns any exception into text that can be logged, sent and stored.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Generator
from types import CoroutineType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Longest reason that is kept in a dead letter and sent to a caller. Every dead letter takes memory of Redis. A shorter
#: bound would cut more of the error texts that an operator reads.
MOST_CHARACTERS = 2000


class HandlerMistake(Exception):
    """A handler is not an async function, or raised GeneratorExit."""


def steps_of(awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
    """Return an object that runs an awaitable step by step, by `send`. Raises HandlerMistake if it is not awaitable."""
    if awaitable.__class__ is CoroutineType:
        return awaitable  # type: ignore[return-value]  # no generator, but it has `send` and `throw`, too
    try:
        return awaitable.__await__()
    except AttributeError as error:
        class_name = type(awaitable).__name__
        raise HandlerMistake(
            f"the handler returned {class_name}, not an awaitable; define it with async def"
        ) from error


class RemainingSteps(Generic[T]):
    """The rest of an awaitable, after its first step. That step took `first_s` seconds and ended with a wait.

    `waits_for` is what the first step has yielded to the event loop: in most cases a future. `longest_s` is the longest
    time for which a step blocked the event loop. The runner and `Tasks` await this object.
    """

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any, first_s: float) -> None:
        self._steps = steps
        self._waits_for = waits_for
        self.longest_s = first_s

    def __await__(self) -> Generator[Any, Any, T]:
        steps, waits_for, clock = self._steps, self._waits_for, time.perf_counter
        while True:
            thrown: BaseException | None = None
            try:
                yield waits_for
            except GeneratorExit:  # the event loop closes this coroutine, so the handler's must end, too
                steps.close()
                raise
            except BaseException as error:
                thrown = error
            step_began = clock()
            try:
                waits_for = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration as end:
                result: T = end.value
                return result
            except GeneratorExit as generator_exit:
                raise generator_exit_mistake() from generator_exit
            finally:
                self.longest_s = max(self.longest_s, clock() - step_began)


def generator_exit_mistake() -> HandlerMistake:
    """Return the error for a handler that raised GeneratorExit.

    The event loop closes coroutines with this exception. Without this error in its place, it would look as if the event
    loop had closed the handler, and not as if the handler had failed.
    """
    return HandlerMistake("the handler raised GeneratorExit")


def describe(error: BaseException) -> str:
    """Return an exception's class and message, as text of bounded length that UTF-8 can encode."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException as message_error:  # `__str__` is code of the handler's class, and may even raise SystemExit
        text = f"{type(error).__name__}, whose message cannot be made: {type(message_error).__name__}"
    return printable(text)


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception, from the handler on, as text of bounded length.

    Logging libraries are not used for this: their tracebacks may show secrets (local variables), take seconds, or fail.
    """
    handler_traceback = error.__traceback__
    # The first frames belong to this package, which called the handler.
    while handler_traceback is not None and handler_traceback.tb_frame.f_globals.get("__package__") == __package__:
        handler_traceback = handler_traceback.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, handler_traceback or error.__traceback__))
    except Exception as format_error:  # `format_exception` itself catches all that `__str__` raises
        text = f"there is no traceback: {type(format_error).__name__}"
    return printable(text, 10 * MOST_CHARACTERS)  # it goes only into the log, so it may be longer than a reason


def printable(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return at most the first `most` characters of a text, and "…" in place of the rest.

    What UTF-8 cannot encode becomes an escape such as `\\udcff`, so the result may have more characters. Control
    characters stay as they are.
    """
    if len(text) > most:
        text = text[:most] + "…"
    return text.encode("utf-8", "backslashreplace").decode()
