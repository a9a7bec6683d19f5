"""The check whether a secret is easy to guess."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

#: Common passwords, and words that a password must not consist of, whatever digits and signs surround them.
_COMMON_FILE = Path(__file__).parent / "common_passwords.txt"
#: From digits and signs that people put in place of letters to these letters.
_PLAIN_LETTERS = str.maketrans("013457$@!", "oieastsai")
#: Digits and signs at the ends of a text.
_OUTER_NON_LETTERS = re.compile(r"^[\W\d_]+|[\W\d_]+$")
#: Keyboard rows and sequences; a password that is a piece of one is refused. After the 9, people go on with 0.
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
    # A secret of one or two different characters counts as a repetition.
    if len(set(folded)) < 3 or _is_sequence(folded):
        return True
    return not {folded, *_trimmed_forms(folded)}.isdisjoint(_read_common())


def _is_sequence(folded: str) -> bool:
    """Return whether a text is a piece of a sequence, forwards or backwards."""
    return any(folded in sequence or folded in sequence[::-1] for sequence in _SEQUENCES)


def _trimmed_forms(folded: str) -> set[str]:
    """Return three forms of a secret without the digits and signs around it.

    In the second form, letters then replace the digits and signs inside that look like them (`_PLAIN_LETTERS`). In the
    third form, they are replaced first. So those at the ends become letters, too, and stay.
    """
    return {
        without_outer_non_letters(folded),
        without_outer_non_letters(folded).translate(_PLAIN_LETTERS),
        without_outer_non_letters(folded.translate(_PLAIN_LETTERS)),
    }


def without_outer_non_letters(text: str) -> str:
    """Return a text without the digits and signs around it."""
    return _OUTER_NON_LETTERS.sub("", text)


@cache
def _read_common() -> frozenset[str]:
    """Return the common passwords and words. Lines that begin with # are comments."""
    lines = _COMMON_FILE.read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
