"""The connections between a kit's replicas and their Redis. Faults happen here, and commits are noted here.

Each replica of a kit gets its own `KitConnections`. They pass every command on to fakeredis or to a real server, unless
the replica is frozen or dead, or the test has asked for a fault.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from mesh.testing.record import (
    BATCH_POSITION,
    TRANSACTIONS_POSITION,
    Observed,
    carries_batch,
    is_commit,
    op_of,
    transactions_of,
)
from mesh.wire.clients import Connections, Credentials
from mesh.wire.codec import ENCODER
from mesh.wire.connection import Command, RedisConnection

#: A frozen replica looks in these intervals whether it has been thawed. With a longer one it goes on later; with a
#: shorter one, a virtual clock makes more jumps while a test waits.
THAW_LOOK_S = 0.05
#: The result of a transaction that `MeshKit.fail` has kept from the server. When its request is given up, the caller's
#: `GivenUp` has this text.
FAILED_RESULT = "the kit let it fail before its commit"


@dataclass(slots=True)
class Faults:
    """The faults that are still to happen, counted for all replicas of a kit together."""

    #: how many of the next trips with batches are lost on their way to Redis
    requests_to_lose: int = 0
    #: how many of the next trips with batches take effect, but lose their answer
    answers_to_lose: int = 0
    #: operation -> how many of its next transactions are kept from the server, as if their commits had failed
    commits_to_fail: Counter[str] = field(default_factory=Counter)

    def lose_request(self) -> None:
        """Raise ConnectionError if this trip is to be lost on its way to Redis."""
        if self.requests_to_lose > 0:
            self.requests_to_lose -= 1
            raise redis.exceptions.ConnectionError("the kit lost the request on its way")

    def lose_answer(self) -> None:
        """Raise ConnectionError if the answer to this trip is to be lost."""
        if self.answers_to_lose > 0:
            self.answers_to_lose -= 1
            raise redis.exceptions.ConnectionError("the kit lost the answer on its way")

    def take_commit_to_fail(self, op: str) -> bool:
        """Return whether the next transaction of this operation is to fail. If so, one fewer is left to fail."""
        if self.commits_to_fail[op] <= 0:
            return False
        self.commits_to_fail[op] -= 1
        return True


class Gate:
    """Lets the commands of a replica pass, unless it is frozen (as by SIGSTOP) or dead (as by SIGKILL)."""

    def __init__(self) -> None:
        self.is_frozen = False
        self.is_dead = False

    async def pass_through(self) -> None:
        """Wait while the replica is frozen. Raises ConnectionError if it is dead."""
        while self.is_frozen and not self.is_dead:
            await asyncio.sleep(THAW_LOOK_S)
        if self.is_dead:
            raise redis.exceptions.ConnectionError("the kit killed this replica")


class KitConnections(Connections):
    """The connections of one replica of a kit, to fakeredis or to a real server."""

    def __init__(self, inner: Connections, gate: Gate, faults: Faults, observed: Observed) -> None:
        super().__init__(inner.settings)
        self._inner = inner
        self._gate = gate
        self._faults = faults
        self._observed = observed

    def as_user(self, credentials: Credentials) -> KitConnections:
        return KitConnections(self._inner.as_user(credentials), self._gate, self._faults, self._observed)

    def client(self, name: str, *, db: int | None = None, block_ms: int = 0, shared: bool = False) -> Redis:
        client = self._inner.client(name, db=db, block_ms=block_ms, shared=shared)
        execute: Any = client.execute_command

        async def gated(*words: Any, **options: Any) -> Any:
            # The second wait at the gate keeps the answer from a replica that was frozen or killed meanwhile.
            await self._gate.pass_through()
            answer = await execute(*words, **options)
            await self._observed.wait_until_noted()
            await self._gate.pass_through()
            return answer

        # Only this client gets another method, and mypy expects none to be replaced.
        client.execute_command = gated  # type: ignore[method-assign]
        return client

    def connection(self, name: str, *, block_ms: int = 0) -> KitConnection:
        return KitConnection(self._inner.connection(name, block_ms=block_ms), self._gate, self._faults, self._observed)


class KitConnection(RedisConnection):
    """One connection of a replica of a kit."""

    def __init__(self, inner: RedisConnection, gate: Gate, faults: Faults, observed: Observed) -> None:
        # This object has no connection of its own, so it does not call the base class: `inner` has the connection.
        self._inner = inner
        self._gate = gate
        self._faults = faults
        self._observed = observed
        #: The number of the last batch, and the positions of those of its transactions that fail. If the batch is sent
        #: again, the same ones fail. No batch has the number 0.
        self._last_failures: tuple[int, set[int]] = (0, set())

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        await self._gate.pass_through()
        if any(map(carries_batch, commands)):
            answers = await self._send_batches(commands)
        else:
            answers = await self._inner.send(commands)
            await self._observed.wait_until_noted()
        await self._gate.pass_through()
        return answers

    async def _send_batches(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands; some of them carry batches. Here the faults happen that the test has asked for."""
        self._faults.lose_request()
        reduced = [self._without_failed(command) if is_commit(command) else command for command in commands]
        with self._observed.trip():
            answers = await self._inner.send(reduced)
            for position, command in enumerate(reduced):
                if is_commit(command):
                    self._observed.note_batch(command, answers[position])
                    answers[position] = self._with_failed(answers[position])
        self._faults.lose_answer()
        return answers

    def _without_failed(self, command: Command) -> Command:
        """Return a command of commit.lua without the transactions that the test lets fail.

        The server never gets these, so they have no effect.
        """
        all_transactions = transactions_of(command)
        if self._last_failures[0] != command[BATCH_POSITION]:
            positions = {
                position
                for position, words in enumerate(all_transactions)
                if self._faults.take_commit_to_fail(op_of(words))
            }
            self._last_failures = (command[BATCH_POSITION], positions)
        if not self._last_failures[1]:
            return command
        remaining = [words for position, words in enumerate(all_transactions) if position not in self._last_failures[1]]
        # As in the original, a number before each transaction says how many words it has, this number included. There
        # are no long words any more: `transactions_of` has put them into their places.
        return (
            *command[:TRANSACTIONS_POSITION],
            ENCODER.encode([word for words in remaining for word in (len(words) + 1, *words)]),
        )

    def _with_failed(self, answer: Any) -> Any:
        """Return the answer with a result for each transaction that was left out, as the link expects it."""
        if not isinstance(answer, str) or not self._last_failures[1]:
            return answer
        results = list(json.loads(answer))
        for position in sorted(self._last_failures[1]):
            results.insert(position, FAILED_RESULT)
        return json.dumps(results)

    async def aclose(self) -> None:
        await self._inner.aclose()
