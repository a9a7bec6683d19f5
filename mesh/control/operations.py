"""The operations of a mesh as an operator sees them: their definitions, the replicas that serve them, their requests.

The command `mesh ops` and the live page show all this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from mesh import keys, roster
from mesh.control.control import Control, PausedOperation
from mesh.control.journeys import JourneyStep
from mesh.settings import MeshSettings
from mesh.wire.codec import decode
from mesh.wire.script import Script

#: Counts the requests on one stream, by operation.
TALLY = Script.beside(__file__, "tally.lua")

#: At most this many entries of each stream, and of `mesh:later`, are counted. The server needs some milliseconds for so
#: many. More would count longer queues to the end, and hold up the server for longer.
MOST_COUNTED = 1000
#: The count of a stream stops after entries whose bodies have this many bytes together, because the script reads whole
#: entries: more would hold up the server for longer.
MOST_BYTES = 1 << 20


@dataclass(slots=True)
class OperationState:
    """One operation; `waits`, `runs` and `later` are numbers of requests.

    `waits` are on streams, and no replica has begun them; `runs` are those that replicas work on; `later` are in
    `mesh:later`. `served_by` has the live replicas that serve the operation: database -> replica. `definition` is the
    operation's entry in `mesh:operations`, or {}. `answers` are the newest replies to its requests.
    `paused` says since when and by whom the operation is paused; None: it is not paused.
    """

    op: str
    definition: Mapping[str, Any] = field(default_factory=dict)
    served_by: dict[int, str] = field(default_factory=dict)
    waits: int = 0
    runs: int = 0
    later: int = 0
    paused: PausedOperation | None = None
    answers: list[JourneyStep] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The word "command" or "query"; "" where it is not known."""
        return str(self.definition.get("kind", ""))

    @property
    def limit(self) -> str:
        """How many of its requests may run at once, or in a time; "" where there is no limit."""
        return str(self.definition.get("limit", ""))

    @property
    def failed(self) -> int:
        """Number of its answers that are errors."""
        return sum(answer.status != "ok" for answer in self.answers)


@dataclass(slots=True)
class OperationStates:
    """All operations that are served or paused, or have requests or answers, by name."""

    by_name: dict[str, OperationState] = field(default_factory=dict)
    #: whether all requests were counted; if not, the numbers count only the first requests of each stream
    complete: bool = True

    def get_or_add(self, op: str) -> OperationState:
        """Return the state of an operation; add an empty state if there is none yet."""
        return self.by_name.setdefault(op, OperationState(op))

    def in_order(self) -> list[OperationState]:
        """Return the operations in the order of their names."""
        return [state for _, state in sorted(self.by_name.items())]


async def read_definitions(redis: Redis) -> dict[str, dict[str, Any]]:
    """Return the definitions in `mesh:operations`, by operation.

    An entry that is no JSON object is left out: only a person can have written it.
    """
    texts: Any = await redis.hgetall(keys.OPERATIONS)
    definition_of = {}
    for op, text in sorted(texts.items()):
        with contextlib.suppress(ValueError):
            if isinstance(definition := decode(text), dict):
                definition_of[op] = definition
    return definition_of


async def read_states(redis: Redis, settings: MeshSettings, answers: Sequence[JourneyStep]) -> OperationStates:
    """Return the state of each operation. `answers` are replies to requests of any operation.

    `redis` is a client of the bus database that decodes answers.
    """
    all_states = OperationStates()
    for answer in answers:
        all_states.get_or_add(answer.op).answers.append(answer)
    for op, definition in (await read_definitions(redis)).items():
        all_states.get_or_add(op).definition = definition
    # The hash maps the digest of each table of operations to these operations. `Member.serves` is such a digest.
    ops_by_digest: Any = await redis.hgetall(keys.SERVED)
    for member in await roster.read_directly(redis):
        for op in ops_by_digest.get(member.serves, "").split():
            # A roster row stays after its lease until the row expires. Meanwhile no replica serves the operation there.
            if member.leased:
                all_states.get_or_add(op).served_by[member.database] = member.replica
    for paused in await Control(redis, settings).paused():
        all_states.get_or_add(paused.op).paused = paused
    for stream in keys.request_streams(settings.classes, settings.databases):
        # After the first word come three for each operation: its name, how many requests wait, how many are worked on.
        is_complete, *ops_and_counts = await TALLY.run(redis, [stream], MOST_COUNTED, MOST_BYTES)
        all_states.complete &= bool(is_complete)
        for op, waits, runs in zip(ops_and_counts[::3], ops_and_counts[1::3], ops_and_counts[2::3], strict=True):
            all_states.get_or_add(op).waits += waits
            all_states.get_or_add(op).runs += runs
    await _count_later(redis, all_states)
    return all_states


async def _count_later(redis: Redis, all_states: OperationStates) -> None:
    """Add the requests in `mesh:later` to the states of their operations."""
    request_names: Any = await redis.zrange(keys.LATER, 0, MOST_COUNTED)
    # The command reads one name more than is counted. If Redis has this name, the count is not complete.
    all_states.complete &= len(request_names) <= MOST_COUNTED
    pipeline = redis.pipeline(transaction=False)
    for name in request_names[:MOST_COUNTED]:
        pipeline.hget(keys.later(name), "op")
    for op in await pipeline.execute():
        if op is not None:  # None: the request has left `mesh:later` in the meantime
            all_states.get_or_add(op).later += 1
