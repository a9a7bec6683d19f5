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


def has_behaviour(candidate: Candidate, text: str) -> bool:
    """Return whether a test can depend on the line of a candidate, given the line's text."""
    return not any(pattern.match(text) for pattern in WITHOUT_BEHAVIOUR)


def reason(mutant: Mutant) -> str | None:
    """Return why no test can notice a mutant, or None."""
    return EQUIVALENT.get((mutant.path, *mutant.changed))
