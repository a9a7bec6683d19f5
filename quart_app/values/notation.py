"""Values and their prime factors as text, from the request to the store and back into the answer.

A value is its decimal digits: "144". Its factors are primes, ascending. A prime that occurs several times is repeated:
"2 2 2 2 3 3". If the repetition would be much longer, the prime has an exponent: "2^3000". An answer repeats each
prime, so most answers need no conversion of the factors. All numbers stay text where that is possible, because
converting an integer of 1000 digits to text or back takes 15 to 25 µs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

#: The first value that is not small: it does not fit in a machine word.
_FIRST_LARGE = str(1 << 64)


def is_small(value: str) -> bool:
    """Return whether a value is below 2^64, so that it takes microseconds to find its factors."""
    length = len(_FIRST_LARGE)
    return len(value) < length or (len(value) == length and value < _FIRST_LARGE)


def rank(value: str) -> tuple[int, str]:
    """Return what sorts values as numbers if it is the `key` of a sort."""
    return len(value), value


#: A prime is repeated if the repetitions add at most this number of characters; else it is written with its exponent.
#: With more characters, Redis stores longer records; with fewer, more answers need a conversion of the factors.
MOST_MORE_CHARACTERS = 30
#: A number below 2^64 with at most this number of factors needs no exponent. Even a prime that divides it eight times
#: adds at most 28 characters, because such a prime is below 256.
MOST_FACTORS_REPEATED = 8


def powers(pairs: Iterable[tuple[int, int]]) -> str:
    """Return the text of (prime, exponent) pairs, which must be ascending and name each prime once."""
    return " ".join([str(prime) if exponent == 1 else _power(str(prime), exponent) for prime, exponent in pairs])


def repeated(prime_factors: Sequence[int]) -> str:
    """Return the text of the factors of a number below 2^64; `prime_factors` are ascending, with repetitions."""
    if len(prime_factors) > MOST_FACTORS_REPEATED:
        return powers(Counter(prime_factors).items())
    return " ".join(map(str, prime_factors))


def _power(prime: str, exponent: int) -> str:
    """Return the text of a power: the prime repeated, or once with its exponent, as MOST_MORE_CHARACTERS says."""
    is_repeated = (exponent - 1) * (len(prime) + 1) <= MOST_MORE_CHARACTERS
    return " ".join([prime] * exponent) if is_repeated else f"{prime}^{exponent}"


def primes(factors: str) -> list[str]:
    """Return the primes in the text of some factors, each once."""
    if "^" not in factors:
        return list(dict.fromkeys(factors.split()))
    return list(dict.fromkeys([power.partition("^")[0] for power in factors.split()]))


def array(factors: str) -> str:
    """Return factors as a JSON array that repeats each prime: "2^2 3" becomes "[2,2,3]"."""
    if "^" not in factors:
        return f"[{factors.replace(' ', ',')}]"
    pieces = []
    for power in factors.split():
        prime, _, exponent = power.partition("^")
        pieces.append(f"{prime}," * int(exponent or 1))
    return f"[{''.join(pieces)[:-1]}]"


def expanded(factors: str) -> list[int]:
    """Return factors as integers, each prime as often as it divides the value."""
    expanded_factors: list[int] = []
    for power in factors.split():
        prime, _, exponent = power.partition("^")
        expanded_factors += [int(prime)] * int(exponent or 1)
    return expanded_factors
