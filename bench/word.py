"""Our engine beside FLINT on numbers below 2^64, in one process, in turn every few numbers.

    python -m bench.word

Both sides use FLINT there, so they differ less than two processes of the same library do. The column "FLINT beside
itself" shows the resolution of this measurement.
"""

from __future__ import annotations

import gc
import random
from operator import add

from bench.factorise import GOAL_WORD, KINDS, Kind
from bench.peers.with_factors import BLOCK, Factorise, flint, ours, quickest
from bench.report import table
from bench.spread import Spread, interleaved, per_round

ROUNDS, PASSES = 20, 15


def seconds(sides: list[Factorise], numbers: list[int]) -> list[float]:
    """Return the CPU seconds of each side, from the quickest pass of each block."""
    spent = [0.0] * len(sides)
    for first in range(0, len(numbers), BLOCK):
        block = numbers[first : first + BLOCK]
        passes: list[list[float]] = [[] for _ in sides]
        for _, side in interleaved(range(len(sides)), PASSES):
            passes[side] += quickest(sides[side], block, 1)[0]
        spent = list(map(add, spent, map(min, passes)))
    return spent


def compared(kind: Kind) -> list[str]:
    """Return the line of a kind: our time, and FLINT's once more, as a share of FLINT's time."""
    chance = random.Random(kind.name)
    rounds = [seconds([ours(), flint(), flint()], [kind.make(chance) for _ in range(200)]) for _ in range(ROUNDS)]
    mine, once, again = zip(*rounds, strict=True)
    return [kind.name, *(Spread.of(per_round(side, once)).text(3) for side in (mine, again))]


def main() -> None:
    gc.disable()
    rows = [compared(kind) for kind in KINDS if kind.goal == GOAL_WORD]
    print(table(["share of FLINT's time", "ours", "FLINT beside itself"], rows))


if __name__ == "__main__":
    main()
