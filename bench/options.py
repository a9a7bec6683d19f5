"""What options cost: a call with an idempotency key, in order per key, and delayed, beside a plain call.

Each turn has a fresh server, one process that calls or sends, and one that works. A handler adds one to a field of its
own in a hash. So a request that had no effect, or two, is found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import request_reply
from bench.environments import PEERS
from bench.processes import child
from bench.record import Ratio, Record, Settings
from bench.report import table
from bench.request_reply import LEVELS, REDIS_PEERS, Contender, TurnFailed, follow
from bench.servers import Server, valkey
from bench.spread import Spread, best_of, interleaved, per_round

IN_FLIGHT, LANES, DELAY_S = 64, 32, 0.5
#: The options by their titles.
OPTIONS = {"plain": "plain", "key": "idempotency key", "lane": "in order per key", "delayed": "delayed"}
#: What is measured, by its title, with its decimal places and the choice of the best.
WHAT = {"rate": ("requests/s", 0, max), "cpu_ms": ("CPU ms a request", 3, min)}
#: How each contender is asked for each option that it has.
WAYS = {
    "mesh": {
        "plain": "`call` of a typed operation",
        "key": "`call(key=)`, a new key for each call; the answer is kept for 24 hours",
        "lane": '`Limit(by="lane", concurrency=1)`: one at a time, in order',
        "delayed": "`send(after=)`; any replica lets it go on",
    },
    "arq": {
        "plain": "`enqueue_job`, `Job.result`",
        "key": "`_job_id=`; without it a job gets a random one; the result is kept for 60 s",
        "delayed": "`_defer_by=`",
    },
    "taskiq": {
        "plain": "`kiq`, `wait_result`",
        "delayed": "`schedule_by_time` with `ListRedisScheduleSource`; the scheduler runs in the process that sends, "
        "and looks once a second, its shortest interval",
    },
    "docket": {
        "plain": "`add`, `get_result`",
        "key": "`add(key=)`; without it a task gets a random one; known for 60 s",
        "lane": "`lane: Annotated[int, ConcurrencyLimit(1)]`: one at a time, no order promised",
        "delayed": "`add(when=)`",
    },
}
#: The other settings.
SETTINGS = {
    "mesh": "one replica asks, one works; exactly-once commit, durable streams",
    "arq": "`max_jobs=256`, worker's `poll_delay` 10 ms, result's `poll_delay` 20 ms, `log_results=False`; "
    "uvloop, hiredis",
    "taskiq": "`RedisStreamBroker`, one worker process, `max_async_tasks=256`, `--no-parse`, results kept until read, "
    "`check_interval` 2 ms; uvloop, hiredis",
    "docket": "`concurrency=256`, `max_connections=1000`, `message_batch` and intervals as they come; uvloop, hiredis",
}
#: They have the settings that are best for many calls in flight.
CONTENDERS = tuple(
    replace(
        one,
        program=f"options_{one.name}.py",
        settings=SETTINGS[one.name],
        environ=one.environ_at.get(max(LEVELS), {}),
    )
    for one in (request_reply.MESH, *REDIS_PEERS)
    if one.name in WAYS
)


def turn(contender: Contender, option: str, settings: Settings) -> dict[str, Any]:
    """Measure one option of one contender, with the processor time a request of all processes and Redis."""
    with ExitStack() as stack:
        server = stack.enter_context(valkey(settings.durability))
        program, own = contender.launch()
        environ = {
            **own,
            "BENCH_REDIS_URL": server.url,
            "BENCH_LEVELS": str(IN_FLIGHT),
            "BENCH_SECONDS": str(settings.seconds),
            "BENCH_OPTION": option,
            "BENCH_LANES": str(LANES),
            "BENCH_DELAY_S": str(DELAY_S),
        }
        worker = stack.enter_context(child([*program, "worker"], environ=environ, folder=PEERS))
        client = stack.enter_context(child([*program, "client"], environ=environ, folder=PEERS, listen=True))
        name = f"{contender.name}, {option}"
        (found,), asked = follow(client.stdout, [worker.pid, client.pid, server.pid], name)
        check_effects(effects(server), found["calls"], asked, name)
        return found


def effects(server: Server) -> list[int]:
    """Return how often each request ran that ran at all."""
    found: list[int] = []
    for space in server.redis().info("keyspace"):
        with server.redis() as client:
            client.select(int(space[2:]))
            for key in client.scan_iter("*effects", count=5000, _type="hash"):
                found += map(int, client.hvals(key))
    return found


def check_effects(found: Sequence[int], accepted: int, asked: int, name: str) -> None:
    """Check that each request ran once. A request that was refused may be missing. Raises TurnFailed."""
    again = sum(times > 1 for times in found)
    if again or not accepted <= len(found) <= asked:
        raise TurnFailed(
            f"{name}: {asked} asked, {accepted} accepted, {len(found)} ran, {again} of them more than once"
        )


def measure(settings: Settings) -> Record:
    """Measure all options of all contenders in turn, round by round."""
    chosen = [
        (one, option)
        for option in OPTIONS
        for one in CONTENDERS
        if option in WAYS[one.name] and (not settings.only or one.name in settings.only)
    ]
    series: dict[str, list[float]] = {}
    for number, (contender, option) in interleaved(chosen, settings.rounds):
        found = turn(contender, option, settings)
        name = f"{contender.name}|{option}"
        for what in WHAT:
            series.setdefault(f"{name}|{what}", []).append(found[what])
        print(f"  round {number + 1} {name}: {found['rate']:,.0f}/s, {found['cpu_ms']:.3f} ms", file=sys.stderr)
    series |= dict(over_plain(series))
    return Record("options", settings, {name: Spread.of(each) for name, each in series.items()}, dict(ratios(series)))


def over_plain(series: Mapping[str, list[float]]) -> Iterator[tuple[str, list[float]]]:
    """Return the processor time of each option as a ratio to the same contender's plain call."""
    for name, ways in WAYS.items():
        for option in ways:
            if option != "plain" and f"{name}|{option}|cpu_ms" in series:
                own = per_round(series[f"{name}|{option}|cpu_ms"], series[f"{name}|plain|cpu_ms"])
                yield f"{name}|{option}|over_plain", own


def ratios(series: Mapping[str, list[float]]) -> Iterator[tuple[str, Ratio]]:
    """Return what each option costs the mesh, and the mesh beside the best peer that has the same option."""
    for option, title in OPTIONS.items():
        if own := series.get(f"mesh|{option}|over_plain"):
            yield f"processor time a request, mesh, {title} / plain", Ratio.of(own, more_is_better=False)
    for option, title in OPTIONS.items():
        for what, (unit, _, choose) in WHAT.items():
            peers = [series.get(f"{one.name}|{option}|{what}") for one in CONTENDERS if one.name != "mesh"]
            ours, theirs = series.get(f"mesh|{option}|{what}"), [each for each in peers if each]
            if ours and theirs:
                against = per_round(ours, best_of(theirs, choose))
                yield f"{unit}, {title}, mesh / best peer", Ratio.of(against, more_is_better=choose is max)


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    there = [one for one in CONTENDERS if f"{one.name}|plain|rate" in record.measured]
    titles = list(OPTIONS.values())
    columns = [
        *((what, unit, digits, OPTIONS) for what, (unit, digits, _) in WHAT.items()),
        ("over_plain", "CPU time / plain", 2, [option for option in OPTIONS if option != "plain"]),
    ]
    parts = [
        table(
            [unit, *(OPTIONS[option] for option in options)],
            [
                [one.title, *(cell(record, f"{one.name}|{option}|{what}", digits) for option in options)]
                for one in there
            ],
        )
        for what, unit, digits, options in columns
    ]
    ways = [[one.title, *(WAYS[one.name].get(option, "-") for option in OPTIONS), one.settings] for one in there]
    return "\n\n".join(
        [*parts, record.ratio_table(), record.circumstances(), table(["", *titles, "other settings"], ways)]
    )


def cell(record: Record, name: str, digits: int) -> str:
    """Return a figure, or "-" where the contender does not have the option."""
    found = record.measured.get(name)
    return "-" if found is None else found.text(digits)
