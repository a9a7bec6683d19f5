"""Mutations: each removes one safety mechanism, so that tests can show that a row of the fault matrix then fails.

A mutation rewrites the source of one script or function of the running process before its first use. It raises
LookupError when the source does not contain the text to replace exactly once.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio.client import Pipeline

from mesh.dead import letters
from mesh.groups.consumer import GroupConsumer
from mesh.later import retry, waking
from mesh.lease.loop_thread import LoopThread
from mesh.operations import transaction
from mesh.requests import runner, scripts, turns
from mesh.wire.script import Script
from quart_app.messages import users
from quart_app.values import handlers, jobs, primes


def _replace(source: str, old: str, new: str) -> str:
    if source.count(old) != 1:
        raise LookupError(f"{old!r} is there {source.count(old)} times")
    return source.replace(old, new)


@dataclass(frozen=True)
class script:
    """A mutation of a Lua script."""

    target: Script
    old: str
    new: str

    def __call__(self) -> None:
        source = self.mutated().source
        self.target.__dict__.pop("sha", None)
        object.__setattr__(self.target, "source", source)

    def mutated(self) -> Script:
        """Return the script as it is after the mutation."""
        return Script(_replace(self.target.source, self.old, self.new))


def sha_of(target: Script, name: str) -> bytes:
    """Return the hash of a script in a process with this mutation, as commands have it."""
    mutation = MUTATIONS.get(name)
    is_mutated = isinstance(mutation, script) and mutation.target is target
    return (mutation.mutated() if is_mutated else target).sha.encode()  # type: ignore[union-attr]


def function(owner: Any, name: str, old: str, new: str) -> Callable[[], None]:
    """Return a mutation of a function or method."""

    def mutate() -> None:
        found = getattr(owner, name)
        source = _replace(textwrap.dedent(inspect.getsource(found)), old, new)
        namespace: dict[str, Any] = {}
        exec(source, sys.modules[found.__module__].__dict__, namespace)
        setattr(owner, name, namespace[name])

    return mutate


async def run_on_the_callers_loop(thread: Any) -> None:
    """Run the coroutine of a LoopThread without a thread."""
    thread._caller = thread._loop = asyncio.get_running_loop()
    await thread._main()


def _renew_on_the_replicas_loop() -> None:
    LoopThread.run = run_on_the_callers_loop  # type: ignore[method-assign]


def _keep_users() -> None:
    say = Pipeline.execute_command

    def execute_command(self: Any, *words: Any, **options: Any) -> Any:
        if words[:2] == ("ACL", "DELUSER"):
            words = ("ACL", "WHOAMI")
        return say(self, *words, **options)

    Pipeline.execute_command = execute_command  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    "lease-check": script(scripts.COMMIT, "held ~= holder", "false"),
    "pending-ownership": script(scripts.COMMIT, "not mine[stream][id]", "false"),
    "full-memory": script(scripts.COMMIT, "memory_is_full and seldom().adds(", "false and seldom().adds("),
    "memory-of-a-batch": script(scripts.COMMIT, "needed >= SMALL", "false"),
    "expected-value": script(scripts.COMMIT, "if found[k] ~= wanted then", "if false then"),
    "expected-answer": script(scripts.COMMIT, "if not is_unchanged(i + 1) then", "if false then"),
    "guarded-reads": function(
        transaction.Transaction,
        "_guard",
        "self._writer(shared).expect(name, text, field)",
        "pass",
    ),
    "checks-before-writes": script(
        scripts.COMMIT,
        "if each.is_special then wrong = seldom().check(wanted, k) else wrong = wrong_type(tx[k], wanted) end",
        "",
    ),
    "any-exception": function(runner.Runner, "_attempt", "except BaseException as error:", "except OSError as error:"),
    "batch-number": script(scripts.SUBMIT, "string.sub(before, 1, #batch) == batch", "false"),
    "turns": function(turns.Turns, "take", "if queue.holder == work:", "if True:"),
    "user-deletion": _keep_users,
    "renewal-thread": _renew_on_the_replicas_loop,
    "deadline": function(runner.Runner, "_attempt", "if request.is_late(now_ms):", "if False:"),
    "own-pending-read": function(
        GroupConsumer, "_recover", "await self._take_over(", "self._recovered or await self._take_over("
    ),
    "missing-databases": script(scripts.SUBMIT, "if tonumber(n) and not class_of(tonumber(n)) then", "if false then"),
    "mesh-clock": script(scripts.SUBMIT, "stamp = latest .. '-*'", "stamp = '*'"),
    "filter-bits": function(primes.Primes, "filters", "return self._kept", "return ()"),
    "drop-message": function(handlers, "_write", "transaction.send(", "(lambda *_: None)("),
    "finished-jobs": script(jobs.ADMIT, "if found[4] == '0' then", "if false then"),
    "reserved-address": script(users.SCRIPTS["change_profile"], "first[1] == email and first[2] ~= id", "false"),
    "replayed-letter": script(letters.REPLAY, "redis.call('XDEL', dead_key, id)", ""),
    "idempotency-key": script(scripts.SUBMIT, "if found[1] and (", "if false and ("),
    "kept-answer": script(scripts.COMMIT, "options.ended(fields, answer, fields.kept == '1')", ""),
    "woken-removal": script(waking.WAKE, "redis.call('ZREM', later_key, name)\n", ""),
    "tick-check": script(
        waking.TICK, "if next ~= tick or known ~= definition or now < tonumber(tick) then return -1 end", ""
    ),
    "deferred-removal": script(retry.DEFER, "  redis.call('XDEL', stream, id)\n", ""),
    "cancel-attempt": script(waking.CANCEL, "if redis.call('EXISTS', attempt_key) == 1 then return 1 end", ""),
    "keyed-sends": script(scripts.COMMIT, "if known then return known.state", "if false then return known.state"),
    "lane-places": script(
        scripts.COMMIT, "if redis.call('HLEN', running) >= tonumber((lane_of(fields.limit))) then return end", ""
    ),
    "begun-rate": script(waking.WAKE, "about.rate and options.limits().begin(about.rate)", "false"),
    "schedule-kept": script(waking.SCHEDULE, "if next and (", "if false and ("),
    "overdelivered": function(runner.Runner, "_attempt", "and is_overdelivered(", "and False and is_overdelivered("),
}


def apply(name: str) -> None:
    """Remove one mechanism from this process; "" removes none. Raises KeyError, LookupError."""
    if name:
        MUTATIONS[name]()


def main() -> None:
    """Print each mutation that no longer finds the text to replace. Each is tried in a process of its own."""
    for name in MUTATIONS:
        pid = os.fork()
        if not pid:
            try:
                apply(name)
            except LookupError as error:
                sys.stdout.write(f"{name}: {error}\n")
                sys.stdout.flush()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
