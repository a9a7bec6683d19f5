"""The table at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.support.mutants.trial import Outcome, Verdict

#: The share of mutants with an effect that tests must kill.
AT_LEAST = 0.95

WITH_EFFECT = (Outcome.KILLED, Outcome.SURVIVED, Outcome.TIMED_OUT)


def share(verdicts: Sequence[Verdict]) -> float:
    """Return the share of mutants that were killed. Equivalent and unclear ones do not count."""
    counted = [each.outcome for each in verdicts if each.outcome in WITH_EFFECT]
    return counted.count(Outcome.KILLED) / len(counted) if counted else 1.0


def line(verdict: Verdict) -> str:
    """Return a verdict in one line."""
    mutant = verdict.mutant
    by = f" ({verdict.by})" if verdict.by else ""
    return f"{verdict.outcome.value:10} {verdict.seconds:5.0f} s  {mutant.path}:{mutant.line} {mutant.kind}{by}"


def text(verdicts: Sequence[Verdict]) -> str:
    """Return the counts, then each mutant that was not killed, with its diff or reason."""
    counts = Counter(each.outcome for each in verdicts)
    lines = [f"{outcome.value:10} {counts[outcome]:4}" for outcome in Outcome]
    lines.append(f"{'share':10} {share(verdicts):4.0%} killed of those with an effect; at least {AT_LEAST:.0%} must be")
    for each in verdicts:
        if each.outcome is not Outcome.KILLED:
            lines += ["", line(each), each.mutant.diff]
    return "\n".join(lines)
