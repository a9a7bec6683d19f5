"""Values and factors as text."""

from __future__ import annotations

import json
from collections import Counter

import gmpy2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_app.values import notation

PRIMES = [prime for prime in range(2, 200) if gmpy2.is_prime(prime)] + [10**40 + 121]
factors = st.lists(st.sampled_from(PRIMES), max_size=12).map(sorted)


@given(factors)
def test_factors_are_written_as_powers_and_out_again(found: list[int]) -> None:
    """The text has each prime once; the JSON array has it as often as it divides."""
    text = notation.powers(sorted(Counter(found).items()))
    assert notation.expanded(text) == found
    assert json.loads(notation.array(text)) == found
    assert notation.primes(text) == [str(prime) for prime in sorted(set(found))]


@pytest.mark.parametrize("prime", [2, 3, 13, 127, 131, 251, 1621, 7129, 65521, 2642239, 4294967291])
def test_the_factors_of_a_small_number_are_written_as_their_powers_are(prime: int) -> None:
    """Up to a few factors, a text without exponents is the same; beyond, exponents are needed."""
    for times in range(65):
        for other in (1, 2, 3 * 5):
            if prime**times * other < 2**64:
                found = sorted([prime] * times + [each for each in (2, 3, 5) if other % each == 0])
                assert notation.repeated(found) == notation.powers(sorted(Counter(found).items()))


@given(factors)
def test_records_that_repeat_a_prime_are_read(found: list[int]) -> None:
    """Releases before powers wrote each factor out."""
    text = " ".join(map(str, found))
    assert notation.expanded(text) == found
    assert json.loads(notation.array(text)) == found
    assert notation.primes(text) == [str(prime) for prime in sorted(set(found))]


@pytest.mark.parametrize("value", [1, 10**19, 2**64 - 1, 2**64, 2**64 + 1, 10**20, 10**990])
def test_small_values_fit_in_a_machine_word(value: int) -> None:
    """The digits alone decide, without a conversion."""
    assert notation.is_small(str(value)) == (value < 2**64)


@given(st.lists(st.integers(1, 10**40)))
def test_ranks_are_in_the_order_of_the_values(values: list[int]) -> None:
    """A sort by rank needs no integers."""
    assert sorted(map(str, values), key=notation.rank) == [str(value) for value in sorted(values)]
