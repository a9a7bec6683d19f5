"""Errors are sentences; those that travel have codes of their own."""

from __future__ import annotations

from datetime import datetime

import pytest

from mesh import errors
from mesh.errors import MeshError, Refused, UsageError, from_wire

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
    """Each fact of an error is an attribute; one that is not given is None."""
    assert errors.Busy(retry_after=2).retry_after == 2.0
    assert errors.Busy().retry_after is None
    assert errors.Incomplete(missing=[3, 5]).missing == [3, 5]
    assert from_wire("incomplete", "x", {"missing": [1]}).facts == {"missing": [1]}


class OutOfStock(Refused, code="test.out-of-stock"):
    """The article is not there."""

    article: str
    until: datetime


def test_a_programs_own_error_is_itself_after_the_way() -> None:
    """Its facts have the types that it names, and further ones are facts, too."""
    facts = {"article": "a", "until": "2026-01-01T00:00:00Z", "more": 1}
    error = from_wire("test.out-of-stock", "gone", facts)
    assert isinstance(error, OutOfStock) and isinstance(error.until, datetime)
    assert (error.article, error.detail, error.facts["more"]) == ("a", "gone", 1)


@pytest.mark.parametrize("facts", [{"article": "a"}, {"article": "a", "until": "soon"}, {}])
def test_an_error_of_another_release_is_a_refusal_with_what_it_says(facts: dict[str, str]) -> None:
    """The error has fewer facts, or of other types; its code stays the same."""
    error = from_wire("test.out-of-stock", "gone", facts)
    assert type(error) is Refused
    assert (error.code, error.detail) == ("test.out-of-stock", "gone")


def test_a_mistake_in_an_error_of_ones_own_is_told() -> None:
    """A fact that is missing; a code that another error has."""
    with pytest.raises(UsageError, match="OutOfStock needs until="):
        OutOfStock(article="a")
    with pytest.raises(UsageError, match="the code 'busy' belongs to Busy"):

        class Mine(Refused, code="busy"):
            """Never made."""

    class Kind(Refused):
        """An error between others needs no code of its own."""

    assert Kind.code == "refused"
