"""Mutants of a Lua script. No tool makes them, so this module changes one token or removes one line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.mutants.mutant import Candidate

SWAPS = {
    "==": "~=", "~=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "and": "or", "or": "and", "true": "false", "false": "true", "not": "",
    "+": "-", "-": "+",
}  # fmt: skip

#: Comments and strings come first, so that no token is found inside them.
TOKENS = re.compile(
    r"""
    (?P<skip>  --\[\[ .*? \]\] | --[^\n]* | \#!lua[^\n]* | '(?:\\.|[^'\\\n])*' | "(?:\\.|[^"\\\n])*" | \.\.+
             # Every test that runs a script notices a wrong index of its arguments.
             | \b(?:KEYS|ARGV)\[\d+\] )
    | (?P<number> \b\d+\b )
    | (?P<swap>   [=~<>]= | [<>+-] | \b(?:and|or|not|true|false)\b )
    """,
    re.VERBOSE | re.DOTALL,
)

#: A statement on a line of its own, the result of which is not used.
CALL = re.compile(r"^\s*(?:redis\.p?call|pcall)\(.*\)\s*$")
EARLY_RETURN = re.compile(r"^\s*if\b.*\bthen return\b.*\bend\s*$")


def candidates(path: str, source: str) -> Iterator[Candidate]:
    """Yield the changes that can be made to a script."""
    yield from _tokens(path, source)
    yield from _lines(path, source)


def _tokens(path: str, source: str) -> Iterator[Candidate]:
    for found in TOKENS.finditer(source):
        if found["skip"]:
            continue
        line = source.count("\n", 0, found.start()) + 1
        kind = "number" if found["number"] else found["swap"]
        new = str(int(found["number"]) + 1) if found["number"] else SWAPS[found["swap"]]
        changed = source[: found.start()] + new + source[found.end() :]
        yield Candidate(path, line, kind, lambda changed=changed: changed)  # type: ignore[misc]


def _lines(path: str, source: str) -> Iterator[Candidate]:
    lines = source.splitlines(keepends=True)
    for number, text in enumerate(lines, 1):
        if CALL.match(text) and text.count("(") == text.count(")"):
            kind = "remove call"
        elif EARLY_RETURN.match(text):
            kind = "remove return"
        else:
            continue
        changed = "".join([*lines[: number - 1], "\n", *lines[number:]])
        yield Candidate(path, number, kind, lambda changed=changed: changed)  # type: ignore[misc]
