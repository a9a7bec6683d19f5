"""The normal form of e-mail addresses and passwords, and the rules for new passwords.

Every path uses these functions: registering, logging in, changing a profile, the administrator of the settings and the
command line. Two spellings of one address are therefore one account.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

from email_validator import EmailNotValidError, validate_email

MIN_PASSWORD = 8
#: Bounds the cost of hashing one password.
MAX_PASSWORD = 256
MAX_EMAIL = 254

#: Common passwords, and words that a password must not consist of, whatever digits and signs surround them.
_COMMON_FILE = Path(__file__).parent / "common_passwords.txt"
#: Digits and signs that people put in place of letters.
_UNDISGUISE = str.maketrans("013457$@!", "oieastsai")
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


def normal_email(text: str) -> str:
    """Return the normal form of an address. Raises ValueError with the reason for an invalid one.

    Case, Unicode compatibility forms (full-width letters, ligatures) and the encoding of the domain (`xn--…`) do not
    make a different account.
    """
    local, at, domain = text.strip().rpartition("@")
    try:
        valid = validate_email(unicodedata.normalize("NFKC", local) + at + domain, check_deliverability=False)
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None
    return f"{_fold(valid.local_part)}@{valid.domain.lower()}"


def normal_password(text: str) -> str:
    """Return the normal form of a password: the same characters, however a keyboard composes them (NIST 800-63B)."""
    return unicodedata.normalize("NFKC", text)


def why_weak(password: str, email: str | None = None) -> str | None:
    """Return why a password in normal form is refused, or None when it is accepted."""
    if len(password) < MIN_PASSWORD:
        return f"a password has at least {MIN_PASSWORD} characters"
    if len(password) > MAX_PASSWORD:
        return f"a password has at most {MAX_PASSWORD} characters"
    if email is not None and _is_made_of(password.casefold(), email):
        return "a password must not be made of the e-mail address"
    if is_guessable(password):
        return "this password is a common one, a repetition or a sequence of keys"
    return None


def is_guessable(secret: str) -> bool:
    """Return whether a secret is empty, well known, a repetition, or a piece of a keyboard row."""
    folded = secret.casefold()
    if len(set(folded)) < 3 or _is_sequence(folded):
        return True
    return not {folded, *_bare_forms(folded)}.isdisjoint(_common())


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text.casefold())


def _is_made_of(folded: str, email: str) -> bool:
    """Return whether only digits and signs are left when the parts of the address are taken out."""
    local, _, domain = email.partition("@")
    words = [email, local, domain, domain.rpartition(".")[0]]
    return any(len(word) >= 3 and word in folded and not _bare(folded.replace(word, "")) for word in words)


def _is_sequence(folded: str) -> bool:
    return any(folded in line or folded in line[::-1] for line in _SEQUENCES)


def _bare_forms(folded: str) -> set[str]:
    """Return what is left without the digits and signs around it, with disguised letters and with plain ones."""
    return {_bare(folded), _bare(folded).translate(_UNDISGUISE), _bare(folded.translate(_UNDISGUISE))}


def _bare(text: str) -> str:
    return _PADDING.sub("", text)


@cache
def _common() -> frozenset[str]:
    lines = _COMMON_FILE.read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
