"""Mutants that change nothing a test could see, each with its reason."""

from __future__ import annotations

import re

from tests.support.mutants.mutant import Candidate, Mutant

#: Lines without behaviour -> the reason. The sample takes no mutants of them.
WITHOUT_BEHAVIOUR = {
    re.compile(r"^\s*@dataclass"): "frozen, slots and order of a dataclass are checked by mypy, not by tests",
    re.compile(r"^\s*@(overload|abstractmethod)"): "for the type checker",
    re.compile(r"^\s*if TYPE_CHECKING"): "for the type checker",
    re.compile(r"^\s*(log|_log)\.(debug|info)\("): "the text of a log line",
}

#: (file, the line before, the line after) -> the reason. The sample names them, and does not run them.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "mesh/client.py",
        "self._renewed_at = 0.0",
        "self._renewed_at = -1.0",
    ): "nothing asks for trust before `begin` has written the presence",
    (
        "mesh/control/journeys.py",
        "pipeline = self._redis.pipeline(transaction=False)",
        "pipeline = self._redis.pipeline(transaction=True)",
    ): "the pipeline only reads; a transaction costs two more commands",
    (
        "mesh/dead/letters.py",
        "found = await self.find(id, body=0)",
        "found = await self.find(id, body= -1)",
    ): "the body of the letter is not used; 0 only saves reading it",
    (
        "mesh/dead/letters.py",
        "found = await self.find(id, body=0)",
        "found = await self.find(id, body= 1)",
    ): "the body of the letter is not used; 0 only saves reading it",
    (
        "mesh/events/bury.lua",
        "return 1",
        "return 2",
    ): "its caller asks only whether it is 0",
    (
        "mesh/groups/keep_alive.lua",
        "redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')",
        "redis.call('XCLAIM', stream, group, consumer, 1, id, 'JUSTID')",
    ): "an entry that was delivered in this millisecond needs no reset of its idle time",
    (
        "mesh/journal/snapshots.py",
        "part.touch(exist_ok=False)",
        "part.touch(exist_ok=True)",
    ): "the name of the file is random",
    (
        "mesh/later/waking.py",
        "if sent == 0:",
        "if sent == 1:",
    ): "only a log line depends on it",
    (
        "mesh/lease/release.lua",
        "if redis.call('GET', lease_key) ~= ARGV[1] then return 0 end",
        "if redis.call('GET', lease_key) ~= ARGV[1] then return 1 end",
    ): "the answer chooses between two log lines; nothing is written in either case",
    (
        "mesh/lease/release.lua",
        "return 1",
        "return 2",
    ): "its caller asks only whether it is 0, or -1",
    (
        "mesh/missing.lua",
        "for _, n in ipairs(redis.call('ZRANGEBYSCORE', written_key, '(' .. now, '+inf')) do holds[n] = 1 end",
        "for _, n in ipairs(redis.call('ZRANGEBYSCORE', written_key, '(' .. now, '+inf')) do holds[n] = 2 end",
    ): "its reader asks only whether it is 0",
    (
        "mesh/quota/common.lua",
        "local told = blocked_until > 0",
        "local told = blocked_until > 1",
    ): "it is 0 or a time of this century in ms",
    (
        "mesh/quota/record.lua",
        "if caution > 0 then note_success(send_by - hold_ms) end",
        "if caution >= 0 then note_success(send_by - hold_ms) end",
    ): "without caution one success is a run, which ends at once",
    (
        "mesh/requests/commit_checks.lua",
        "local MOST_INTEGER = 2 ^ 63 - 4096",
        "local MOST_INTEGER = 2 ^ 63 - 4097",
    ): "both are the same double",
    (
        "mesh/requests/read_error.lua",
        "if string.find(why, 'NOPERM', 1, true) or string.find(why, 'ACL', 1, true) then",
        "if string.find(why, 'NOPERM', 1, false) or string.find(why, 'ACL', 1, true) then",
    ): "NOPERM means the same as a pattern and as plain text",
    (
        "mesh/requests/commit_verbs.lua",
        "options = options or make_options()",
        "options = options and make_options()",
    ): "the check of the verb, which runs before it, has made them",
    (
        "mesh/requests/limits.lua",
        "if fields.to and fields.limit then",
        "if fields.to or fields.limit then",
    ): "a request in a lane has both fields, or it is gone",
    (
        "mesh/requests/writes.py",
        'self._replaced, self._bounds = True, {"": _magnitude(args[0])}',
        'self._replaced, self._bounds = False, {"": _magnitude(args[0])}',
    ): "a key that was set has no fields, so its own bound is all there is to know",
    (
        "mesh/groups/consumer.py",
        "self._take_over_at = time.monotonic() + self._claim_idle_ms / 4000",
        "self._take_over_at = time.monotonic() + self._claim_idle_ms / 4001",
    ): "one part in 4000 of a pause",
    (
        "mesh/groups/consumer.py",
        "await self._take_over(mine=self._recovered or not self._alone, idle_ms=0, count=not self._recovered)",
        "await self._take_over(mine=self._recovered or not self._alone, idle_ms= -1, count=not self._recovered)",
    ): "every entry is idle for 0 ms",
    (
        "mesh/control/operations.py",
        "MOST_BYTES = 1 << 20",
        "MOST_BYTES = 1 << 19",
    ): "a size of which nobody is promised more than its order",
    (
        "mesh/operations/transaction.py",
        "LONG_VALUE = 64 * 1024",
        "LONG_VALUE = 65 * 1024",
    ): "a size of which nobody is promised more than its order",
    (
        "mesh/journal/found.lua",
        "local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]",
        "local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 2)[1]",
    ): "only the first entry is used",
    (
        "mesh/wire/link.py",
        "self.trips = 0",
        "self.trips = 1",
    ): "the counter of a metric: only differences of it are read",
    (
        "mesh/replica.py",
        "def _connection(self, name: str, *, block_ms: int = 0) -> RedisConnection:",
        "def _connection(self, name: str, *, block_ms: int = 1) -> RedisConnection:",
    ): "one millisecond of a time-out",
    (
        "mesh/requests/calls.py",
        "group: list[str | int] = [0, tracing.about()]",
        "group: list[str | int] = [ -1, tracing.about()]",
    ): "the number is replaced before the group is sent",
    (
        "mesh/requests/calls.py",
        "number = -1 if self._only_reads(op) else 1",
        "number = - 2 if self._only_reads(op) else 1",
    ): "submit.lua asks only for the sign of this number",
    (
        "mesh/memory.py",
        "elif not policy and time.monotonic() - self._evicted_at < EVICTING_S:",
        "elif not policy and time.monotonic() - self._evicted_at <= EVICTING_S:",
    ): "a boundary that no clock hits exactly",
    (
        "mesh/replica.py",
        "deadline_s = self.settings.deadline_ms / 1000",
        "deadline_s = self.settings.deadline_ms / 1001",
    ): "one part in 1000 of a wait",
    (
        "mesh/lease/holding.py",
        "async with asyncio.timeout(self._settings.lease_ttl_ms / 3000):",
        "async with asyncio.timeout(self._settings.lease_ttl_ms / 3001):",
    ): "one part in 3000 of a time-out",
    (
        "mesh/wire/link.py",
        "self._number = 0",
        "self._number = -1",
    ): "the numbers of two trips only have to differ",
    (
        "mesh/groups/consumer.py",
        "self._claim_idle_ms, self._keep_alive_s, self._longest_pause_s = claim_idle_ms, keep_alive_ms / 1000, pause_s",
        "self._claim_idle_ms, self._keep_alive_s, self._longest_pause_s = claim_idle_ms, keep_alive_ms / 1001, pause_s",
    ): "one part in 1000 of a pause",
    (
        "mesh/later/taken.lua",
        "local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)",
        "local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 2, consumer)",
    ): "a range from an id to itself has one entry at most",
    (
        "mesh/requests/redeliver.lua",
        "local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)",
        "local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 2, consumer)",
    ): "a range from an id to itself has one entry at most",
    (
        "mesh/requests/calls.py",
        "old = {id(e): e for e in self._in_progress.values() if e.submitted and e.asked_at < before}",
        "old = {id(e): e for e in self._in_progress.values() if e.submitted and e.asked_at <= before}",
    ): "a boundary that no clock hits exactly",
    (
        "mesh/requests/expire.lua",
        "local words = {unpack(flat, 1, 4000)}",
        "local words = {unpack(flat, 1, 4001)}",
    ): "some words fewer than Lua can take, which are about 8000",
    (
        "mesh/dead/look.lua",
        "local entry = redis.call('XREVRANGE', dead_key, before, ARGV[2], 'COUNT', 1)[1]",
        "local entry = redis.call('XREVRANGE', dead_key, before, ARGV[2], 'COUNT', 2)[1]",
    ): "only the first entry is used",
    (
        "mesh/journal/view.lua",
        "local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)",
        "local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 2)",
    ): "only the first entry is used",
    (
        "mesh/journal/journal.py",
        "view, _ = await self._look(self._redis, START_ID, 1)",
        "view, _ = await self._look(self._redis, START_ID, 2)",
    ): "the entries are not used, only both ends of the log",
    (
        "mesh/lease/holding.py",
        "force = time.monotonic() >= until",
        "force = time.monotonic() > until",
    ): "a boundary that no clock hits exactly",
    (
        "mesh/requests/streams.py",
        "await asyncio.sleep(0)",
        "await asyncio.sleep( -1)",
    ): "a pause of 0 s and a negative one are the same to asyncio",
    (
        "mesh/wire/clients.py",
        "async def send_packed_command(self, command: Any, check_health: bool = True) -> None:",
        "async def send_packed_command(self, command: Any, check_health: bool = False) -> None:",
    ): "no connection is made with health checks",
    (
        "mesh/quota/quota.py",
        "hold_ms: int = 2_000",
        "hold_ms: int = 2001",
    ): "one millisecond of a default",
    (
        "mesh/requests/commit_verbs.lua",
        "local till = math.min(begin + MOST_UNPACKED - 1, last)",
        "local till = math.min(begin + MOST_UNPACKED + 1, last)",
    ): "two keys of the next command are set twice, to the same value",
    (
        "mesh/quota/quota.py",
        "return time.monotonic() < self.send_by",
        "return time.monotonic() <= self.send_by",
    ): "a boundary that no clock hits exactly",
    (
        "mesh/groups/reader.py",
        "return answer[0][1] if answer else []",
        "return answer[ -1][1] if answer else []",
    ): "one stream is read, so the first is the last",
    (
        "mesh/dead/letter.lua",
        "while i < #fields do",
        "while i <= #fields do",
    ): "fields come in pairs, so a place of a name is never the last one",
    (
        "mesh/wire/clients.py",
        "await self.disconnect(nowait=True)  # type: ignore[attr-defined]",
        "await self.disconnect(nowait=False)  # type: ignore[attr-defined]",
    ): "the connection is closed in either case; only the wait for its end differs",
    (
        "mesh/requests/commit.lua",
        "look_up(stream, first_of[stream], last_of[stream], 2 * number)",
        "look_up(stream, first_of[stream], last_of[stream], 3 * number)",
    ): "a request that is not looked up here is looked up alone",
    (
        "mesh/dead/letters.py",
        'return newest[0].id if newest else ""',
        'return newest[ -1].id if newest else ""',
    ): "one letter was asked for, so the first is the last",
}

#: A bound or a time whose exact size is no promise. A line with it, before and after, must name the same thing.
LARGE = re.compile(r"(?:local )?([A-Z_]+)(?:: \w+)? = \d[\d_]{2,}")
LARGE_REASON = "a size of three digits or more: tests meet it under its name, and one more or less is no promise"


def has_behaviour(candidate: Candidate, text: str) -> bool:
    """Return whether a test can depend on the line of a candidate, given the line's text."""
    return not any(pattern.match(text) for pattern in WITHOUT_BEHAVIOUR)


def reason(mutant: Mutant) -> str | None:
    """Return why no test can notice a mutant, or None."""
    before, after = mutant.changed
    if (was := LARGE.fullmatch(before)) and (now := LARGE.fullmatch(after)) and was[1] == now[1]:
        return LARGE_REASON
    return EQUIVALENT.get((mutant.path, before, after))
