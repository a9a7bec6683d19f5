"""A random sample of mutants. The same seed draws the same mutants of all lines that did not change."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
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
    replaced by the next line. A change of one line of the core does not change the draw of the others.
    """
    by_line: dict[tuple[str, int], list[Candidate]] = defaultdict(list)
    for candidate in found:
        by_line[candidate.path, candidate.line].append(candidate)
    sources = {path: (root / path).read_text("utf-8") for path, _ in by_line}
    drawn: list[tuple[float, str, int, Candidate]] = []
    seen: Counter[tuple[str, str]] = Counter()
    for path, line in sorted(by_line):
        text = sources[path].splitlines()[line - 1]
        seen[path, text] += 1
        chance = random.Random(f"{seed} {path} {text} {seen[path, text]}")
        drawn.append((chance.random(), path, line, chance.choice(by_line[path, line])))
    made: list[Mutant] = []
    for _, path, line, candidate in sorted(drawn, key=lambda each: each[:3]):
        if len(made) == number:
            break
        after = candidate.apply()
        if after is not None and after != sources[path]:
            made.append(Mutant(path, line, candidate.kind, sources[path], after))
    return made
