"""A check for linearizability of one register: the algorithm of Wing and Gong with Lowe's memory of configurations.

Each write has a tag of its own. An operation takes effect at one moment between its call and its return. An operation
without a return, because its client got no clear answer, took effect at any later moment or never.

    put   the tag becomes the state
    seen  there was some state (with tag None: there was none)
    peek  the state was this tag
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

#: The search gives up after this many configurations; a correct history needs about one for each operation.
MOST = 300_000


class Kind(Enum):
    PUT = "put"
    SEEN = "seen"
    PEEK = "peek"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call on one register; `returned` is infinite when the outcome is unknown."""

    kind: Kind
    tag: int | None
    called: float
    returned: float = math.inf

    @property
    def certain(self) -> bool:
        return self.returned < math.inf

    def after(self, state: int | None) -> tuple[bool, int | None]:
        """Return whether the operation can happen in this state, and the state after it."""
        if self.kind is Kind.PUT:
            return True, self.tag
        if self.kind is Kind.PEEK:
            return state == self.tag, state
        return (state is None) == (self.tag is None), state


class Undecided(Exception):
    """The search looked at too many configurations and gave up."""


def linearizable(history: Iterable[Operation]) -> bool:
    """Return whether some order explains every certain operation. Raises Undecided."""
    operations = sorted(_relevant(list(history)), key=lambda operation: operation.called)
    certain = sum(1 << i for i, operation in enumerate(operations) if operation.certain)
    stack: list[tuple[int, int | None]] = [(0, None)]
    known = set(stack)
    while stack:
        done, state = stack.pop()
        if done & certain == certain:
            return True
        for configuration in _next(operations, done, state):
            if configuration not in known:
                known.add(configuration)
                stack.append(configuration)
        if len(known) > MOST:
            raise Undecided(f"{len(operations)} operations")
    return False


def _relevant(history: list[Operation]) -> list[Operation]:
    """Return the history without those writes of unknown outcome that are not needed to explain it.

    A write that no peek found can only explain that there was a state. The earliest such write is enough, and none is
    needed after a certain write has returned.
    """
    met = {operation.tag for operation in history if operation.kind is Kind.PEEK}
    unmet = [operation for operation in history if not operation.certain and operation.tag not in met]
    first = min((one.returned for one in history if one.kind is Kind.PUT and one.certain), default=math.inf)
    earliest = min(unmet, key=lambda operation: operation.called, default=None)
    kept = [operation for operation in history if operation.certain or operation.tag in met]
    return [*kept, earliest] if earliest is not None and earliest.called < first else kept


def _next(operations: Sequence[Operation], done: int, state: int | None) -> list[tuple[int, int | None]]:
    """Return the configurations that may come next, the likeliest last.

    Any operation may come next that was called before another remaining operation returned.
    """
    horizon = math.inf
    may: list[tuple[float, int]] = []
    at = (~done & (done + 1)).bit_length() - 1
    while at < len(operations) and operations[at].called <= horizon:
        if not done >> at & 1:
            may.append((operations[at].returned, at))
            horizon = min(horizon, operations[at].returned)
        at += 1
    found = []
    for _, i in sorted(may, reverse=True):
        possible, then = operations[i].after(state)
        if possible and operations[i].called <= horizon:
            found.append((done | 1 << i, then))
    return found
