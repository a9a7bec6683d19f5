"""A random sample of mutants. The same seed gives the same sample as long as the core is the same."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.mutants import equivalent, lua
from tests.support.mutants.mutant import Candidate, Mutant

#: The library behind `mesh.testing` is for tests; its mistakes show in them.
CORE, LEFT_OUT = "mesh", "mesh/testing/"


def candidates(root: Path, only: str = CORE) -> Iterator[Candidate]:
    """Yield the candidates of all modules and scripts of the core whose path begins with `only`."""
    from tests.support.mutants import python

    makers = {".py": python.candidates, ".lua": lua.candidates}
    for file in sorted((root / CORE).rglob("*")):
        path = file.relative_to(root).as_posix()
        if file.suffix in makers and path.startswith(only) and not path.startswith(LEFT_OUT):
            source = file.read_text("utf-8")
            lines = source.splitlines()
            for candidate in makers[file.suffix](path, source):
                if equivalent.has_behaviour(candidate, lines[candidate.line - 1]):
                    yield candidate


def sample(found: Iterable[Candidate], root: Path, number: int, seed: int) -> list[Mutant]:
    """Return up to `number` mutants: lines are drawn at random, then one mutant of each line.

    A line with many operators is as likely as any other. A candidate that changes nothing, or that is no Python, is
    replaced by the next line.
    """
    chance = random.Random(seed)
    by_line: dict[tuple[str, int], list[Candidate]] = defaultdict(list)
    for candidate in found:
        by_line[candidate.path, candidate.line].append(candidate)
    lines = sorted(by_line)
    chance.shuffle(lines)
    drawn = (chance.choice(by_line[line]) for line in lines)
    made: list[Mutant] = []
    for candidate in drawn:
        if len(made) == number:
            break
        before, after = (root / candidate.path).read_text("utf-8"), candidate.apply()
        if after is not None and after != before:
            made.append(Mutant(candidate.path, candidate.line, candidate.kind, before, after))
    return made
