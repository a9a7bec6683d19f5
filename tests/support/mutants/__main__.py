"""`python -m tests.support.mutants` tries a random sample of mutants of the core; `make mutants` runs it.

Each mutant is tried in a copy of the tree, with the tests of the core that run the changed line, the likeliest first.
The exit code is 1 where tests kill less than 95 % of the mutants that have an effect.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.mutants import equivalent, report
from tests.support.mutants.concerned import stages
from tests.support.mutants.killed import Killed
from tests.support.mutants.mutant import Mutant
from tests.support.mutants.reach import measured
from tests.support.mutants.sample import CORE, candidates, sample
from tests.support.mutants.trial import Outcome, Verdict, copy_of

ROOT = Path(__file__).parents[3]

#: What one run leaves to the next: what each test runs, and which mutants were killed.
KEPT = ROOT / ".mutants"

#: How many times as long as measured the tests of a mutant may take, before they are ended.
SLOWER = 10


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.support.mutants", description=__doc__)
    found.add_argument("--number", type=int, default=20, help="mutants to try (%(default)s)")
    found.add_argument("--seed", type=int, help="of the sample; without it one is drawn, and printed")
    found.add_argument("--only", default=CORE, help="begin of the paths to change, for example mesh/requests")
    found.add_argument("--seconds", type=float, default=60, help="seconds of tests for each mutant (%(default)s)")
    found.add_argument("--list", action="store_true", help="print the sample and try nothing")
    return found


def verdicts(mutants: Iterable[Mutant], most_s: float) -> Iterator[Verdict]:
    """Try each mutant in one copy of the tree, one after the other."""
    killed = Killed(ROOT, KEPT / "killed.json")
    with copy_of(ROOT) as tree:
        reach = measured(ROOT, KEPT / "reach.json", tree.record)
        tree.steady |= reach.passed | {test.partition("::")[0] for test in reach.passed}
        for mutant in mutants:
            known = set(tree.broken)
            if reason := equivalent.reason(mutant):
                yield Verdict(mutant, Outcome.EQUIVALENT, reason)
            elif test := killed.find(mutant):
                yield Verdict(mutant, Outcome.KILLED, test)
            else:
                verdict = tree.try_mutant(mutant, stages(mutant, ROOT, reach, most_s), SLOWER * most_s)
                if verdict.outcome is Outcome.KILLED:
                    killed.add(mutant, verdict.by)
                yield verdict
            for test in tree.broken:
                if test not in known:
                    print(f"fails without a mutant, and is left out: {test}", flush=True)


def main() -> int:
    options = parser().parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    mutants = sample(candidates(ROOT, options.only), ROOT, options.number, seed)
    print(f"{len(mutants)} mutants below {options.only}, seed {seed}", flush=True)
    if options.list:
        print("\n".join(mutant.diff for mutant in mutants))
        return 0
    done: list[Verdict] = []
    try:
        for verdict in verdicts(mutants, options.seconds):
            done.append(verdict)
            print(f"[{len(done)}/{len(mutants)}] {report.line(verdict)}", flush=True)
    except KeyboardInterrupt:
        print("interrupted; the table counts what was tried")
    print(f"\n{report.text(done)}")
    return int(report.share(done) < report.AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
