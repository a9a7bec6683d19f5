"""Errors are sentences; those that travel have codes of their own."""

from __future__ import annotations

import pytest

from mesh import errors
from mesh.errors import MeshError, from_wire

EVERY = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, MeshError)]


@pytest.mark.parametrize("cls", EVERY)
def test_an_error_without_words_says_the_first_sentence_of_its_meaning(cls: type[MeshError]) -> None:
    """A class's docstring is what a user reads."""
    text = str(cls())
    assert text.endswith(".") and len(text) > 10 and "\n" not in text


def test_codes_are_unambiguous() -> None:
    """Children of SetupError never travel; whatever has a code of its own has it alone."""
    own = [cls for cls in EVERY if "code" in vars(cls)]
    assert len({cls.code for cls in own}) == len(own)


def test_facts_are_attributes() -> None:
    """Where a number is known it can be asked for."""
    assert errors.Busy(retry_after=2).retry_after == 2.0
    assert errors.Busy().retry_after is None
    assert errors.Incomplete(missing=[3, 5]).missing == [3, 5]
    assert from_wire("incomplete", "x", {"missing": [1]}).facts == {"missing": [1]}
