"""The check whether a secret is easy to guess."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

#: Common passwords, and words that a password must not consist of, whatever digits and signs surround them.
_COMMON_FILE = Path(__file__).parent / "common_passwords.txt"
#: Digits and signs that people put in place of letters.
_PLAIN_LETTERS = str.maketrans("013457$@!", "oieastsai")
_PADDING = re.compile(r"^[\W\d_]+|[\W\d_]+$")
#: Keyboard rows and sequences; a password that is a piece of one is refused.
_SEQUENCES = (
    "01234567890123456789",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiop",
    "asdfghjkl",
    "qwertzuiop",
    "azertyuiop",
)


def is_guessable(secret: str) -> bool:
    """Return whether a secret is empty, well known, a repetition, or a piece of a keyboard row."""
    folded = secret.casefold()
    if len(set(folded)) < 3 or _is_sequence(folded):
        return True
    return not {folded, *_bare_forms(folded)}.isdisjoint(_common())


def _is_sequence(folded: str) -> bool:
    return any(folded in sequence or folded in sequence[::-1] for sequence in _SEQUENCES)


def _bare_forms(folded: str) -> set[str]:
    """Return three forms of a password without the digits and signs around it.

    In the second form, letters replace the digits and signs inside that look like them (`_PLAIN_LETTERS`). In the third
    form they are replaced first, so those at the ends become letters, too, and stay.
    """
    return {bare(folded), bare(folded).translate(_PLAIN_LETTERS), bare(folded.translate(_PLAIN_LETTERS))}


def bare(text: str) -> str:
    """Return a text without the digits and signs around it."""
    return _PADDING.sub("", text)


@cache
def _common() -> frozenset[str]:
    lines = _COMMON_FILE.read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
