"""Mutants that change nothing a test could see, each with its reason."""

from __future__ import annotations

import re

from tests.support.mutants.mutant import Candidate, Mutant

#: Lines without behaviour -> the reason. The sample takes no mutants of them.
WITHOUT_BEHAVIOUR = {
    re.compile(r"^\s*@dataclass"): "frozen, slots and order of a dataclass are checked by mypy, not by tests",
    re.compile(r"^\s*@overload"): "for the type checker",
    re.compile(r"^\s*if TYPE_CHECKING"): "for the type checker",
    re.compile(r"^\s*(log|_log)\.(debug|info)\("): "the text of a log line",
}

#: (file, the line before, the line after) -> the reason. The sample names them, and does not run them.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "mesh/requests/limits.lua",
        "if string.find(why, 'NOPERM', 1, true) or string.find(why, 'ACL', 1, true) then",
        "if string.find(why, 'NOPERM', 1, false) or string.find(why, 'ACL', 1, true) then",
    ): "NOPERM means the same as a pattern and as plain text",
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
