"""The normal form of e-mail addresses and passwords, and the rules for new passwords.

Registration, login, the change of a profile and the command line use these functions; so does the code for the
administrator that the settings name. So two spellings of one address are one account.
"""

from __future__ import annotations

import unicodedata

from quart_app.security.guessable import is_guessable, without_outer_non_letters

#: Bounds of a password, in characters. The lower one holds only for new passwords; shorter ones are easy to guess.
#: The upper one bounds the cost of normalising and hashing a password. The models of /messages check it before
#: they make the normal form, at a login, too. `why_weak` checks it again, because a normal form may be longer.
MIN_PASSWORD = 8
MAX_PASSWORD = 256
#: The most characters of an address. SMTP allows 256 for an address and the angle brackets around it (RFC 5321, section
#: 4.5.3.1.3). The models of /messages check this bound.
MAX_EMAIL = 254


def normal_email(text: str) -> str:
    """Return the normal form of an address. Raises ValueError with the reason for an invalid one.

    Case, Unicode compatibility forms (full-width letters, ligatures) and the encoding of the domain (`xn--…`) do not
    make a different account.
    """
    # This import takes 14 ms, and most commands of `mesh` do not need it. A replica imports it at its start (`load`).
    from email_validator import EmailNotValidError, validate_email

    local, at_sign, domain = text.strip().rpartition("@")
    try:
        address = validate_email(unicodedata.normalize("NFKC", local) + at_sign + domain, check_deliverability=False)
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None
    return f"{_fold(address.local_part)}@{address.domain.lower()}"


def load() -> None:
    """Load the libraries and tables of this module, so that the first request does not hold the event loop for them."""
    normal_email("someone@bücher.example")  # not ASCII, so that the tables for such domains are loaded, too
    is_guessable("neither common nor short")


def normal_password(text: str) -> str:
    """Return the normal form of a password: the same characters, however a keyboard composes them (NIST 800-63B)."""
    return unicodedata.normalize("NFKC", text)


def why_weak(password: str, email: str | None = None) -> str | None:
    """Return why a password is refused, or None when it is accepted.

    Callers pass the password and the address in normal form.
    """
    if len(password) < MIN_PASSWORD:
        return f"a password has at least {MIN_PASSWORD} characters"
    if len(password) > MAX_PASSWORD:
        return f"a password has at most {MAX_PASSWORD} characters"
    if email is not None and _is_made_of(password.casefold(), email):
        return "a password must not be made of the e-mail address"
    if is_guessable(password):
        return "this password is a common one, a repetition or a sequence of keys"
    return None


def _fold(text: str) -> str:
    """Return a text without differences of case and of Unicode forms."""
    return unicodedata.normalize("NFKC", text.casefold())


def _is_made_of(folded_password: str, email: str) -> bool:
    """Return whether only digits and signs are left of a password when a part of the address is taken out."""
    local, _, domain = email.partition("@")
    parts = [email, local, domain, domain.rpartition(".")[0]]
    # Parts of one or two characters are in many passwords by chance.
    return any(
        len(part) >= 3 and part in folded_password and not without_outer_non_letters(folded_password.replace(part, ""))
        for part in parts
    )
