"""Checks of the promises, over the history of a run and the data in Redis after nothing is in flight any more."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import redis

from mesh import keys
from mesh.requests.scripts import BOOKS
from quart_app.values.store import Record
from tests.support import values_index
from tests.support.faults.history import History, Sample
from tests.support.faults.linearizability import Kind, Operation, Undecided, linearizable
from tests.support.faults.load import BRIEF_PRIME, PRIME, VALUES, tag_of, written

DATABASES = 16
CLASSES = "ABCD"
STREAMS = keys.request_streams(CLASSES, DATABASES)
#: The prefixes of the keys that may be in the bus database.
BUS_KEYS = ("mesh:", "shared:", "events:", "db0:")


class Broken(AssertionError):
    """A promise was broken."""


class TooLate(Broken):
    """A promise was kept, but too late."""


@dataclass
class Findings:
    """The broken promises by kind, as sentences."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.unanswered or self.other)

    def says(self) -> str:
        kinds = {
            "lost": self.lost,
            "doubled": self.doubled,
            "unanswered": self.unanswered,
            "other": self.other,
        }
        return "\n".join(f"{kind} ({len(found)}): {found[:5]}" for kind, found in kinds.items() if found)


class Data:
    """The data in Redis, read with administrator rights."""

    def __init__(self, connect: Callable[[int], redis.Redis]) -> None:
        self.effects: Counter[str] = Counter()
        self.records: dict[int, list[tuple[int, Record]]] = defaultdict(list)
        self.places: dict[int, str] = {}
        self.strange: list[str] = []
        for database in range(DATABASES):
            with connect(database) as client:
                self._read(client, database)

    def _read(self, client: redis.Redis, database: int) -> None:
        allowed = BUS_KEYS if database == 0 else (keys.own(database),)
        for key in client.scan_iter(count=1000):
            if not key.startswith(allowed):
                self.strange.append(f"{key} in database {database}")
            if key.startswith("shared:values:where:"):
                self.places[int(key.rpartition(":")[2])] = client.get(key) or ""
        own = keys.own(database)
        # At one moment: between two reads a sweep may remove records together with their index.
        with client.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(f"{own}tally:effects")
            pipeline.zrange(f"{own}values:index", 0, -1)
            pipeline.hgetall(f"{own}values:alone")
            pipeline.hgetall(f"{own}values:records")
            effects, ordered, alone, records = pipeline.execute()
        for id, count in effects.items():
            self.effects[id] += int(count)
        index = {*ordered, *map(":".join, alone.items())}
        for value, text in records.items():
            record = Record.parse(text)
            self.records[int(value)].append((database, record))
            index -= values_index.members({value: record.factors})
        self.strange += [f"index entry {member} without a record in database {database}" for member in index]


def books(client: redis.Redis) -> dict[str, int]:
    """Return the books; they balance when accepted is the sum of the other counts. No row writes requests by hand."""
    found = client.eval(BOOKS.source, 1 + len(STREAMS), keys.BOOKS, *STREAMS)
    names = ("accepted", "answered", "expired", "cancelled", "dead", "lost", "in_flight", "waiting")
    counts = dict(zip(names, map(int, found), strict=True))
    counts["accepted"] -= int(client.hget(keys.BOOKS, "by_hand") or 0)  # those ended, and no script had accepted them
    return counts


def pending(client: redis.Redis) -> int:
    """Return the number of entries that are pending for a consumer."""
    count = 0
    for stream in STREAMS:
        if client.exists(stream):
            count += sum(group["pending"] for group in client.xinfo_groups(stream))
    return count


def examine(history: History, data: Data, patience_s: float, lost_until: float = -math.inf) -> Findings:
    """Check every promise. Data confirmed before the time `lost_until` may be missing: the fault deleted them."""
    findings = Findings()
    findings.unanswered += [
        f"{sample.path}: {sample.status or sample.error} after {sample.took_s:.2f} s"
        for sample in history.samples
        if sample.status == 0 or sample.took_s > patience_s
    ]
    _effects(history, data, findings, lost_until)
    _lists(history, findings)
    _one_record(data, findings, lost_until)
    _brief(history, findings, lost_until)
    if lost_until == -math.inf:
        _registers(history, data, findings)
    findings.other += data.strange
    unexpected = [sample for sample in history.samples if sample.status == 500 and not _is_mistaken(sample)]
    if unexpected:
        findings.other.append(f"{len(unexpected)} answers with status 500")
    return findings


def _is_mistaken(sample: Sample) -> bool:
    """Return whether the handler of a request was told to make a mistake."""
    return sample.path == "/tally" and bool(sample.asked.get("mistake"))


def _effects(history: History, data: Data, findings: Findings, lost_until: float) -> None:
    """Check that a confirmed request has one effect, and any other at most one."""
    for sample in history.of("/tally"):
        count = data.effects[sample.asked["id"]]
        if count > 1:
            findings.doubled.append(f"{sample.asked['id']} ({sample.status}) took effect {count} times")
        elif count == 0 and sample.ok and sample.returned > lost_until:
            findings.lost.append(f"{sample.asked['id']} was confirmed and has no effect")


def _lists(history: History, findings: Findings) -> None:
    """Check that a GET shows each value once, in ascending order, with its factors."""
    for sample in history.of("/values/"):
        if not sample.ok:
            continue
        values = [item["value"] for item in sample.answer]
        if values != sorted(set(values)):
            findings.doubled.append(f"a GET shows {values}")
        findings.other += [
            f"{item['value']} is not the product of {item['prime_factors']}"
            for item in sample.answer
            if math.prod(item["prime_factors"]) != item["value"]
        ]


def _one_record(data: Data, findings: Findings, lost_until: float) -> None:
    """Check that a value has one record in the mesh, in the database that `where` names.

    When the fault deleted a stream with the drop of an old record, that record stays until it expires. No GET shows it
    beside the new one.
    """
    taken_until_ms = (time.time() - time.monotonic() + lost_until) * 1000
    for value, found in data.records.items():
        place = data.places.get(value, "")
        astray = [record for database, record in found if not place.startswith(f"{database} ")]
        if len(found) > 1 and any(int(record.request_id.partition("-")[0]) >= taken_until_ms for record in astray):
            findings.doubled.append(f"{value} lies in databases {[database for database, _ in found]}")
        if place and len(astray) == len(found):
            findings.lost.append(f"{value} is said to be at {place!r} and is not")


def _brief(history: History, findings: Findings, lost_until: float) -> None:
    """Check that GETs show a record from its confirmation until its expiry, and no longer."""
    shows = [
        (sample, {item["value"] for item in sample.answer})
        for sample in history.of(f"/values/{BRIEF_PRIME}")
        if sample.ok
    ]
    for put in _puts(history):
        (value, ttl), *others = written(put).items()
        if others or value % BRIEF_PRIME or not put.ok:
            continue
        for get, values in shows:
            if get.called > put.returned + ttl and value in values:
                findings.other.append(f"{value} was shown {get.called - put.returned - ttl:.3f} s after its expiry")
            alive = put.returned < get.called and get.returned < put.called + ttl
            if alive and value not in values and put.returned > lost_until and not get.left_out:
                findings.lost.append(f"{value} was not shown {get.called - put.returned:.3f} s after its answer")


def _puts(history: History) -> Iterable[Sample]:
    return (sample for sample in history.samples if sample.path == "/values")


def _registers(history: History, data: Data, findings: Findings) -> None:
    """Check for each value that some order of the operations explains every answer and every look."""
    for value in VALUES:
        operations = [*_writes(history, value), *_reads(history, value), *_looks(history, value), _last(data, value)]
        try:
            fine = linearizable(operations)
        except Undecided as error:
            findings.other.append(f"the history of {value} cannot be decided: {error}")
            continue
        if not fine:
            findings.lost.append(f"no order explains the history of {value} ({len(operations)} operations)")


def _writes(history: History, value: int) -> Iterable[Operation]:
    for sample in _puts(history):
        tag = written(sample).get(value)
        if tag is not None:
            yield Operation(Kind.PUT, tag, sample.called, sample.settled)


def _reads(history: History, value: int) -> Iterable[Operation]:
    for sample in history.of(f"/values/{PRIME}"):
        if not sample.ok:
            continue
        there = any(item["value"] == value for item in sample.answer)
        if there or not sample.left_out:
            yield Operation(Kind.SEEN, 0 if there else None, sample.called, sample.returned)


def _looks(history: History, value: int) -> Iterable[Operation]:
    for look in history.looks:
        yield Operation(Kind.PEEK, look.tags[value], look.called, look.returned)


def _last(data: Data, value: int) -> Operation:
    """Return the record at the end of the run as a last operation."""
    found = data.records.get(value, [])
    tag = tag_of(str(found[0][1])) if found else None
    return Operation(Kind.PEEK, tag, 1e15, 2e15)
