"""One normal form of addresses and passwords, and the passwords that are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_app.security.identity import normal_email, normal_password, why_weak


@pytest.mark.parametrize(
    ("spelling", "normal"),
    [
        ("Boss@Corp.Example", "boss@corp.example"),
        (" boss@corp.example ", "boss@corp.example"),
        ("ｂｏｓｓ@ｃｏｒｐ.example", "boss@corp.example"),
        ("o\ufb03ce@corp.example", "office@corp.example"),
        ("ann@xn--bcher-kva.example", "ann@bücher.example"),
        ("ANN@BÜCHER.example", "ann@bücher.example"),
        ("ann@bu\u0308cher.example", "ann@bücher.example"),
        ("ΣΑΣ@x.example", "σασ@x.example"),
    ],
)
def test_the_spellings_of_an_address_are_one_account(spelling: str, normal: str) -> None:
    """Case, Unicode forms and the encoding of the domain make no difference."""
    assert normal_email(spelling) == normal


@given(st.from_regex(r"[\w.+-]{1,12}@[\w-]{1,12}\.example", fullmatch=True))
def test_a_normal_form_is_its_own(text: str) -> None:
    """What was registered under its normal form is found under it."""
    try:
        normal = normal_email(text)
    except ValueError:
        return
    assert normal_email(normal) == normal
    assert normal_email(normal.upper()) == normal_email(normal.upper().lower())


@pytest.mark.parametrize("text", ["", "boss", "a@b@c.example", "a b@c.example", "b\u200boss@c.example", "a@localhost"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """The error has the reason."""
    with pytest.raises(ValueError, match=r"\w"):
        normal_email(text)


def test_a_password_is_the_same_however_it_was_typed() -> None:
    """Letters may be composed or decomposed, and digits full-width."""
    assert normal_password("schlu\u0308ssel \uff11") == normal_password("schlüssel 1")


@pytest.mark.parametrize(
    "password",
    [
        *("seven77", "x" * 257, "password", "PASSWORD1!", "p@ssw0rd", "changeme123", "admin123456", "12345678"),
        *("aaaaaaaa", "abababab", "87654321", "qwertyuiop", "iloveyou!!"),
        *("ann.ames2026", "ann.ames@example.com", "2026example.com"),
    ],
)
def test_weak_passwords_are_refused(password: str) -> None:
    """Common passwords with decoration, sequences, and parts of the address are weak."""
    assert why_weak(password, "ann.ames@example.com")


@pytest.mark.parametrize(
    "password", ["correct horse", "battery staple", "ann and the example", "Zb7!kq2w", "пароль для энн"]
)
def test_other_passwords_are_accepted(password: str) -> None:
    """There are no rules of composition."""
    assert why_weak(password, "ann.ames@example.com") is None


def test_what_the_first_address_and_password_need_is_loaded_before_them() -> None:
    """The first request would hold the event loop for it."""
    program = """
import sys
from quart_app.security import guessable, identity
needed = {"email_validator", "idna.uts46data"}
assert not needed & sys.modules.keys() and not guessable._read_common.cache_info().currsize
identity.load()
assert needed <= sys.modules.keys() and guessable._read_common.cache_info().currsize
"""
    subprocess.run([sys.executable, "-c", program], check=True)
