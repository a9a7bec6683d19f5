"""Factorisation: our engine beside sympy, primefac, FLINT and PARI, one thread each, on numbers of many kinds.

The whole measurement takes half an hour on a quiet core, half of it for the largest factors.
`--only "two primes, 40 digits"` measures one kind; a semicolon separates several.

Each contender has a process on the same processor. All get the same numbers, with a few passes each in turn. Each turn
has another order of contenders, each round has new numbers. CPU time counts, and for each block of numbers only the
quickest pass, so that other work on the machine disturbs little. Every answer is checked. A contender that takes too
long on a kind is stopped and skipped for that kind; a library that is known to be that slow is skipped from the start.
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gmpy2

from bench.environments import PEERS, ROOT, environment, version
from bench.record import Ratio, Record, Settings
from bench.report import table
from bench.spread import Spread, interleaved
from quart_app.values import estimate

OURS = "ours"
PEER_NAMES = {"flint": "python-flint", "pari": "cypari", "sympy": "sympy", "primefac": "primefac"}
CONTENDERS = (OURS, *PEER_NAMES)
#: contenders that sieve; the others need two hundred times as long at 30 digits, and hours from 50 or 60 on
SIEVES = (OURS, "flint", "pari")
#: contenders with curves for a 20-digit factor in a number too large for a sieve; PARI needs five to ten times as long
CURVES = (OURS, "flint")
#: the goal: at most this times the time of the best other; below 2^64 not slower
GOAL, GOAL_WORD = 1.2, 1.0
#: to compare to one part in a hundred, a kind needs many passes of some milliseconds
WORD_PASSES, WORD_TURNS = 5, 5
#: a contender is stopped after this many times the best time: at least LEAST_S, at most twice the best time + MOST_S
PATIENCE, LEAST_S, MOST_S = 20.0, 4.0, 30.0
#: the first contender, for which there is no best time yet, is stopped after this
FIRST_S = 1800.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of numbers: how many a round, how to make one, passes in a turn, and turns."""

    name: str
    count: int
    make: Callable[[random.Random], int]
    passes: int = 1
    turns: int = 1
    rounds: int = 100
    goal: float = GOAL
    #: the contenders
    by: tuple[str, ...] = CONTENDERS


def prime(chance: random.Random, digits: int) -> int:
    return int(gmpy2.next_prime(chance.randrange(10 ** (digits - 1), 10**digits)))


def semiprime(digits: int) -> Callable[[random.Random], int]:
    """Return a product, of exactly `digits` digits, of two primes with half of the digits each."""

    def make(chance: random.Random) -> int:
        while True:
            found = prime(chance, (digits + 1) // 2) * prime(chance, (digits + 1) // 2)
            if len(str(found)) == digits:
                return found

    return make


def with_factor(small: int, cofactor: int) -> Callable[[random.Random], int]:
    """Return a prime of `small` digits times one of `cofactor` digits."""
    return lambda chance: prime(chance, small) * prime(chance, cofactor)


def within_a_word(make: Callable[[random.Random], int]) -> Callable[[random.Random], int]:
    """Return the first number that is below 2^64."""
    return lambda chance: next(number for number in iter(lambda: make(chance), 0) if number < 1 << 64)


def power(most_digits: int) -> Callable[[random.Random], int]:
    """Return the second to seventh power of a prime."""
    return lambda chance: prime(chance, chance.randrange(2, most_digits + 1)) ** chance.randrange(2, 8)


def smooth(chance: random.Random) -> int:
    """Return a product of primes below 100 that is just below 2^64."""
    number = 1
    while (larger := number * chance.choice(SMALL)) < 1 << 64:
        number = larger
    return number


def carmichael(*sizes: int) -> Callable[[random.Random], int]:
    """Return (6k + 1)(12k + 1)(18k + 1), all three prime, for a k of `digits` digits."""

    def make(chance: random.Random) -> int:
        size = chance.choice(sizes)
        while True:
            k = chance.randrange(10 ** (size - 1), 10**size)
            if all(gmpy2.is_prime(m * k + 1) for m in (6, 12, 18)):
                return (6 * k + 1) * (12 * k + 1) * (18 * k + 1)

    return make


SMALL = [p for p in range(2, 100) if gmpy2.is_prime(p)]
#: 2^k - 1 whose last composite has up to 50 digits
MERSENNE = (31, 61, 64, 67, 73, 89, 97, 101, 107, 109, 113, 120, 127, 131, 137, 149, 151, 157, 160, 180, 200)


def below_a_word(name: str, count: int, make: Callable[[random.Random], int]) -> Kind:
    """Return a kind that takes microseconds a number."""
    return Kind(name, count, make, WORD_PASSES, WORD_TURNS, goal=GOAL_WORD)


KINDS = (
    below_a_word("random, 32 bits", 2000, lambda chance: chance.randrange(1, 1 << 32)),
    below_a_word("random, 64 bits", 1000, lambda chance: chance.randrange(1 << 63, 1 << 64)),
    below_a_word("primes, 64 bits", 1000, lambda chance: int(gmpy2.next_prime(chance.getrandbits(63)))),
    below_a_word("two primes, 12 digits", 500, semiprime(12)),
    below_a_word("two primes, 18 digits", 200, semiprime(18)),
    below_a_word("two primes, 19 digits", 100, within_a_word(semiprime(19))),
    below_a_word("powers of primes, below 2^64", 1000, within_a_word(power(9))),
    below_a_word("products of small primes, below 2^64", 1000, smooth),
    below_a_word("Carmichael numbers, below 2^64", 300, within_a_word(carmichael(2, 3, 4, 5))),
    Kind("random, 100 bits", 150, lambda chance: chance.getrandbits(100) | 1 << 99, 2),
    Kind("two primes, 20 digits", 80, semiprime(20), 2),
    Kind("two primes, 24 digits", 60, semiprime(24), 2),
    Kind("two primes, 30 digits", 40, semiprime(30), by=SIEVES),
    Kind("two primes, 40 digits", 10, semiprime(40), by=SIEVES),
    Kind("two primes, 50 digits", 4, semiprime(50), by=SIEVES),
    Kind("two primes, 60 digits", 1, semiprime(60), rounds=3, by=SIEVES),
    Kind("two primes, 70 digits", 1, semiprime(70), rounds=1, by=SIEVES),
    # Curves depend on luck: another twenty numbers may give a ratio a third higher or lower.
    Kind("15-digit factor, 45-digit cofactor", 20, with_factor(15, 45), rounds=3, by=SIEVES),
    Kind("15-digit factor, 100-digit cofactor", 20, with_factor(15, 100), rounds=3, by=(*SIEVES, "sympy")),
    Kind("15-digit factor, 185-digit cofactor", 15, with_factor(15, 185), rounds=3, by=SIEVES),
    Kind("20-digit factor, 100-digit cofactor", 20, with_factor(20, 100), rounds=1, by=CURVES),
    Kind("25-digit factor, 100-digit cofactor", 10, with_factor(25, 100), rounds=1, by=CURVES),
    Kind("primes, 100 digits", 30, lambda chance: prime(chance, 100), 2),
    Kind("powers of primes", 100, power(39), 2),
    Kind("Carmichael numbers", 40, carmichael(3, 5, 7, 9, 13), 2),
    Kind("factorials to 1000!", 30, lambda chance: math.factorial(chance.randrange(10, 1000)), 2),
    Kind("2^k - 1, k to 200", 12, lambda chance: 2 ** chance.choice(MERSENNE) - 1),
)


@dataclass(slots=True)
class Contender:
    """A library in a process of its own, which lives through all kinds."""

    name: str
    process: subprocess.Popen[str] | None = None
    #: kinds for which it was too slow
    given_up: set[str] = field(default_factory=set)

    def _start(self) -> subprocess.Popen[str]:
        python = Path(sys.executable) if self.name == OURS else environment("factors")
        argv = [python, PEERS / "with_factors.py", self.name]
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # On a shared machine processors differ by the minute, so all contenders use the same one in turn.
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def seconds(self, numbers: list[int], passes: int, limit_s: float) -> list[float] | None:
        """Return the CPU seconds of the quickest pass of each block, or None beyond the limit. Checks the factors."""
        self.process = self.process or self._start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"numbers": [str(number) for number in numbers], "passes": passes}) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], limit_s)[0]:
            self.end()
            return None
        answer = json.loads(self.process.stdout.readline())
        for number, factors in zip(numbers, answer["factors"], strict=True):
            if math.prod(factors) != number or not all(map(gmpy2.is_prime, factors)):
                raise ArithmeticError(f"{self.name}: {factors} for {number}")
        return list(answer["seconds"])

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def measure(settings: Settings) -> Record:
    """Measure milliseconds a number for every kind and contender, and the ratios."""
    contenders = [Contender(name) for name in CONTENDERS]
    measured: dict[str, Spread] = {}
    ratios: dict[str, Ratio] = {}
    wanted = ",".join(settings.only).split(";")
    try:
        for kind in KINDS:
            if settings.only and kind.name not in wanted:
                continue
            begun = time.monotonic()
            asked = [contender for contender in contenders if contender.name in kind.by]
            rows = of_kind(kind, asked, min(settings.rounds, kind.rounds))
            for name, values in rows.items():
                measured[f"{kind.name} | {name}"] = Spread.of(values)
            if against := ratio(kind, rows):
                ratios[kind.name] = against
            text = against.spread.text(2) if against else f"only {', '.join(rows)} in time"
            print(f"  {kind.name}: {text}, in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    finally:
        for contender in contenders:
            contender.end()
    versions = {name: version("factors", distribution) for name, distribution in PEER_NAMES.items()}
    return Record("factorise", settings, measured, ratios, {"versions": versions})


def of_kind(kind: Kind, contenders: list[Contender], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds a number in each round, for each contender that was quick enough."""
    chances = [random.Random(f"{kind.name} {number}") for number in range(rounds)]
    numbers = [[kind.make(chance) for _ in range(kind.count)] for chance in chances]
    turns: dict[str, list[list[float]]] = {contender.name: [] for contender in contenders}
    best_s = math.inf
    for turn, contender in interleaved(contenders, rounds * kind.turns):
        if kind.name in contender.given_up:
            continue
        limit_s = FIRST_S if math.isinf(best_s) else max(LEAST_S, min(PATIENCE * best_s, 2 * best_s + MOST_S))
        begun = time.monotonic()
        blocks = contender.seconds(numbers[turn // kind.turns], kind.passes, limit_s)
        if blocks is None:
            contender.given_up.add(kind.name)
            del turns[contender.name]
            continue
        best_s = min(best_s, time.monotonic() - begun)
        turns[contender.name].append(blocks)
    return {name: of_rounds(kind, taken) for name, taken in turns.items()}


def of_rounds(kind: Kind, turns: list[list[float]]) -> list[float]:
    """Return milliseconds a number in each round, from the quickest turn of each block."""
    rounds = [turns[first : first + kind.turns] for first in range(0, len(turns), kind.turns)]
    return [1000 * sum(map(min, zip(*taken, strict=True))) / kind.count for taken in rounds]


def ratio(kind: Kind, rows: dict[str, list[float]]) -> Ratio | None:
    """Return our time over that of the contender that was best over all rounds, round by round.

    None when we, or all others, were stopped.
    """
    others = [values for name, values in rows.items() if name != OURS]
    if not others or OURS not in rows:
        return None
    best = min(others, key=sum)
    return Ratio.of([a / b for a, b in zip(rows[OURS], best, strict=True)], goal=kind.goal, more_is_better=False)


def present(found: Record, plots: Path) -> str:
    """Return the table, and the estimates beside the measured times."""
    labels = {OURS: "ours", **{name: f"{name} {found.facts['versions'][name]}" for name in PEER_NAMES}}
    header = ["ms a number", *labels.values(), "ours / best other", "goal", "reached"]
    measured = {name.partition(" | ")[0] for name in found.measured}
    rows = [row(found, kind) for kind in KINDS if kind.name in measured]
    return "\n\n".join([table(header, rows), estimates(found), f"{found.circumstances()} CPU time of one thread."])


def row(found: Record, kind: Kind) -> list[str]:
    """Return the line of a kind in the table."""
    against = found.ratios.get(kind.name)
    ours_in_time = f"{kind.name} | {OURS}" in found.measured
    return [
        kind.name,
        *(milliseconds(found, kind, contender) for contender in CONTENDERS),
        against.spread.text(2) if against else "",
        f"≤ {kind.goal:g}",
        "yes" if (against.met if against else ours_in_time) else "not yet",
    ]


def milliseconds(found: Record, kind: Kind, contender: str) -> str:
    """Return a cell of the table: a time, or why there is none."""
    cell = found.measured.get(f"{kind.name} | {contender}")
    if cell is not None:
        return cell.text(digits(cell.median))
    return "too slow" if contender in kind.by else "not asked"


def estimates(found: Record) -> str:
    """Return the estimates of the sieve from `estimate.py`, beside the measured times."""
    rows = []
    for size in (20, 24, 30, 40, 50, 60, 70):
        measured = found.measured.get(f"two primes, {size} digits | {OURS}")
        if measured:
            expected_ms = 1000 * estimate.sieve_seconds(int(size * math.log2(10)))
            rows.append([str(size), f"{expected_ms:,.2f}", measured.text(2)])
    return table(["digits", "expected ms", "measured ms"], rows) if rows else ""


def digits(milliseconds: float) -> int:
    """Format a number with the decimal places that mean something."""
    return max(0, 3 - math.ceil(math.log10(milliseconds))) if milliseconds > 0 else 0


if __name__ == "__main__":
    print(present(measure(Settings()), Path()))
