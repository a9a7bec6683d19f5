"""GET of many results: what a thousand results add to a GET, beside one encoding of them by msgspec.

One replica, one GET at a time. GETs of no result, of one and of a thousand follow each other, and the processor time of
each is read by itself. A round counts its quickest quarter, so that other work on the machine matters little.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from bench.record import Ratio, Record, Settings
from bench.replicas import Mesh, get, plant, replicas
from bench.report import table
from bench.spread import Spread, per_round

#: Results of a GET, and a prime that no value has for the first.
NONE, ONE, MANY = 0, 1, 1000
NOWHERE = 1_000_000_007
#: GETs of each kind in a round; a connection takes a thousand requests.
GETS = 200
ENCODINGS = 20
#: After an answer, a replica still does what its client need not wait for.
PAUSE_S = 0.0005


def spent_ms(pids: Sequence[int]) -> float:
    """Return the processor time so far of all threads of some processes, in ms. The kernel knows it in ns."""
    found = [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in found) / 1e6


def costs(mesh: Mesh, act: Callable[[], None]) -> dict[str, float]:
    """Return the processor time that an act takes, in ms, by group of processes."""
    before = {name: spent_ms(pids) for name, pids in mesh.watched.items()}
    act()
    time.sleep(PAUSE_S)
    return {name: spent_ms(pids) - before[name] for name, pids in mesh.watched.items()}


def encode_ms(answer: list[dict[str, object]]) -> float:
    """Return the processor time that msgspec takes to encode an answer, in ms; mostly it finds it in the caches."""
    begun = time.thread_time()
    for _ in range(ENCODINGS):
        msgspec.json.encode(answer)
    return 1000 * (time.thread_time() - begun) / ENCODINGS


def quickest(values: Sequence[float]) -> float:
    """Return the bound of the quickest quarter."""
    return statistics.quantiles(values, n=4)[0]


def round_of(mesh: Mesh, primes: Mapping[int, int], answer: list[dict[str, object]]) -> dict[str, float]:
    """Return the figures of one round."""
    connection = http.client.HTTPConnection("127.0.0.1", mesh.ports[0], timeout=60)

    def ask(prime: int) -> None:
        connection.request("GET", f"/values/{prime}")
        response = connection.getresponse()
        if response.status != 200 or not response.read():
            raise RuntimeError(f"a GET was answered with {response.status}")

    series: dict[str, list[float]] = {}
    for _ in range(GETS):
        series.setdefault("encode_ms", []).append(encode_ms(answer))
        for results, prime in primes.items():
            for name, cost in costs(mesh, lambda: ask(prime)).items():  # noqa: B023 - called at once
                series.setdefault(f"{results}|{name}", []).append(cost)
    connection.close()
    return {name: quickest(values) for name, values in series.items()}


def measure(settings: Settings) -> Record:
    """Measure round by round."""
    with replicas(1, classes="A", durability=settings.durability) as mesh:
        (many,) = plant(mesh, "A", primes=1, results=MANY)
        answer = get(mesh.ports[0], many)
        if json.loads(msgspec.json.encode(answer)) != answer or len(answer) != MANY:
            raise RuntimeError("the answer is not what was planted")
        primes = {NONE: NOWHERE, ONE: answer[-1]["prime_factors"][0], MANY: many}
        rounds = [round_of(mesh, primes, answer) for _ in range(settings.rounds)]
    series = {name: [each[name] for each in rounds] for name in rounds[0]}
    return Record("results", settings, {name: Spread.of(each) for name, each in series.items()}, ratios(series))


def ratios(series: Mapping[str, list[float]]) -> dict[str, Ratio]:
    """Return what the results add to the replica's processor time, over one encoding of them."""
    found: dict[str, Ratio] = {}
    for title, less, goal in (("one", ONE, 3.0), ("none", NONE, None)):
        pairs = zip(series[f"{MANY}|replicas"], series[f"{less}|replicas"], strict=True)
        found[f"processor time of the replica, {MANY:,} results more than {title} / msgspec's encode"] = Ratio.of(
            per_round([many - few for many, few in pairs], series["encode_ms"]), goal=goal, more_is_better=False
        )
    return found


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    rows = [
        [f"{results:,}", *(record.measured[f"{results}|{what}"].text(3) for what in ("replicas", "redis"))]
        for results in (NONE, ONE, MANY)
    ]
    header = ["results", "CPU ms a GET, replica", "CPU ms a GET, Redis"]
    encoding = f"msgspec encodes the answer of {MANY:,} results in {record.measured['encode_ms'].text(3)} ms."
    way = f"One GET at a time, {GETS} of each kind in a round, of which the quickest quarter counts."
    return "\n\n".join([table(header, rows), record.ratio_table(), f"{record.circumstances()} {encoding} {way}"])
