"""The engine: it finds the prime factors of a number, `factorise(n)`.

The method depends on the size of what is still to be split. `python -m bench factorise` repeats the measurements;
`docs/factorisation.md` has the licences and the wheels.

| size or kind | method | reason |
| --- | --- | --- |
| below 2^64 | FLINT | 0.5 to 15 µs, 0.3 ms for two primes of 32 bits; PARI takes 4 to 900 µs, Python 40 to 600 µs |
| small prime factors | FLINT | divides 30 digits by the first 1000 primes in 6 µs |
| prime or perfect power | GMP (gmpy2) | 10 to 100 µs; FLINT and PARI take 1 to 40 ms to prove a large prime |
| Carmichael number or similar | a strong test | the test that shows that it is composite also finds a divisor |
| up to 140 bits | PARI | combines Pollard's rho and a sieve; takes a quarter to a half of FLINT's time |
| up to `SIEVE_BITS` | some curves, then PARI's sieve | three quarters of FLINT's time at 40 to 75 digits |
| larger | curves (FLINT) | a sieve would take more than an hour; curves find small factors |

PARI (`cypari`, with wheels for x86_64 and arm64, takes 7 MB of memory) is under the GPL, and this project is under the
MIT licence. So PARI is an extra: `pip install quart-mesh[pari]`. Without the extra, FLINT does PARI's work, and takes
1.2 to 4 times as long between 20 and 60 digits. An image that contains the extra may be passed on under the GPL only.

Every result is checked: the product of the factors is n, and each factor passes FLINT's test: below 2^81 a proof, above
a BPSW test. A factor from 2^81 on has already passed GMP's test, which is other code.

The work can be done in steps (`begin`, `advance`). Each step takes and returns the state of the work as a plain value.
So another process can do a step, curves can stop at a deadline, and a caller can see how far the work is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any

import gmpy2
from flint import fmpz

from quart_app.values import estimate, notation
from quart_app.values.curves import curve

#: Every number is first divided by this number of small primes. FLINT divides 30 digits by 1000 primes in 6 µs.
TRIAL_COUNT = 1000
#: The square of the last of these primes. A number below the square is prime if none of these primes divides it.
TRIAL_SQUARE = 7919**2

WORD_BITS = 64  # a machine word: FLINT factors such a number in 0.3 ms at most
_WORD_END = 1 << WORD_BITS  # the first number that does not fit in a machine word
#: From this size on, a number is tested first. If it is prime, the test takes half as long as a search for factors.
_TEST_FIRST_FROM = 1 << 62
#: From here on, python-flint converts a number by way of text, in 0.4 µs. So only the lower 63 bits are converted, in
#: 0.1 µs, and the top bit is added.
_SIGNED_END = 1 << 63
_TOP_BIT = fmpz(_SIGNED_END)
_TOO_SMALL = "only numbers from 1 up have prime factors"

#: Primes below this are looked up in a set: faster than a test while the set fits in the processor's cache.
_LOOKED_UP_BELOW = 1 << 8
_LOOKED_UP_PRIMES = frozenset(filter(gmpy2.is_prime, range(_LOOKED_UP_BELOW)))

#: Below this, FLINT proves in 4 µs that a number is prime. Above this, a proof takes a thousand times as long.
_PROVEN_BELOW = 1 << 81

#: Between these sizes, PARI combines all of its methods. Below, the sieve alone is faster. Above, curves run before it.
MIXTURE_BITS = 140
SIEVE_ALONE_BITS = 90

#: The sieve is not tried beyond this many bits: 95 digits, which take an hour. Callers may pass another `sieve_bits`.
SIEVE_BITS = 315

#: PARI's stack begins with a sixteenth of this size, and may grow to all of it. A number of 80 digits needs a tenth.
_PARI_STACK_BYTES = 1 << 30
#: Flags of PARI's `factorint`: 2 skips the first curves, 4 skips Pollard's rho and Shanks' method.
_PARI_MIXTURE, _PARI_SIEVE_ALONE = 0, 2 | 4


class WrongFactors(ArithmeticError):
    """The factors that a library returned are not the prime factors of the number."""


class Stage(StrEnum):
    """What the engine does with a number."""

    DIVISION = "division"
    CURVES = "curves"
    SIEVE = "sieve"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Composite:
    """A divisor that is still to be split. `times`: how often it divides the number; `curves`: how many ran on it."""

    value: int
    times: int = 1
    curves: int = 0

    @property
    def bits(self) -> int:
        return self.value.bit_length()


@dataclass(frozen=True, slots=True)
class Factoring:
    """How far a factorisation is: number = product of `powers` and `composites`. The smallest composite is first."""

    number: int
    #: pairs of a prime and its exponent; a prime may be in several pairs
    powers: tuple[tuple[int, int], ...] = ()
    composites: tuple[Composite, ...] = ()

    @property
    def done(self) -> bool:
        return not self.composites

    def factors(self) -> str:
        """Return the prime factors as text, checked. Raises WrongFactors; ValueError while composites are left."""
        if self.composites:
            raise ValueError("the factorisation is not finished")
        return notation.powers(checked(self.number, self.powers))

    def known(self) -> str:
        """Return the prime factors found so far, as text."""
        return notation.powers(_merged(self.powers))


def factorise(number: int) -> list[int]:
    """Return the prime factors, ascending, each as often as it divides the number; [] for 1. There is no time limit.

    Raises ValueError for a number below 1, and WrongFactors.
    """
    return _checked_word_factors(number) if number < _WORD_END else notation.expanded(factors(number))


def factors(number: int) -> str:
    """Return the prime factors as text (see `notation`). Raises as `factorise` does."""
    if number < _WORD_END:
        return word_factors(number)
    factoring = begin(number)
    while not factoring.done:
        factoring = advance(factoring)
    return factoring.factors()


def word_factors(number: int) -> str:
    """Return the prime factors of a number below 2^64 as text. Raises as `factorise` does."""
    return notation.repeated(_checked_word_factors(number))


def _checked_word_factors(number: int) -> list[int]:
    """Return the checked prime factors of a number below 2^64. FLINT takes nine tenths of the time."""
    if number < _TEST_FIRST_FROM:
        if number < 1:
            raise ValueError(_TOO_SMALL)
        whole = fmpz(number)
        powers = whole.factor()
        if len(powers) == 1 and powers[0][1] == 1 and whole.is_prime():  # FLINT found one prime: test it
            return [number]
    else:
        whole = fmpz(number) if number < _SIGNED_END else _TOP_BIT + (number - _SIGNED_END)
        if number & 1 and whole.is_prime():
            return [number]
        powers = whole.factor()
    primes: list[int] = []
    for prime, times in powers:
        factor = int(prime)
        if not (factor in _LOOKED_UP_PRIMES if factor < _LOOKED_UP_BELOW else prime.is_prime()):
            raise WrongFactors(f"{factor}, found for {number}, is not prime")
        primes += [factor] * times
    if math.prod(primes) != number:
        raise WrongFactors(f"the factors found for {number} have another product: {primes}")
    primes.sort()
    return primes


def begin(number: int) -> Factoring:
    """Do the cheap steps, which take microseconds for up to 500 bits. Raises ValueError for a number below 1."""
    return _after_division(number, _small_primes_and_rest(number))


def begin_short(number: int, most_bits: int) -> Factoring | None:
    """Do the cheap steps; return None if a part of more than `most_bits` is left after division by small primes.

    The division takes less than a millisecond for 1000 digits. Raises ValueError for a number below 1.
    """
    divisors = _small_primes_and_rest(number)
    if any(divisor >= TRIAL_SQUARE and int(divisor).bit_length() > most_bits for divisor, _ in divisors):
        return None
    return _after_division(number, divisors)


def _small_primes_and_rest(number: int) -> list[tuple[fmpz, int]]:
    """Divide a number by the first primes. Return the divisors and the rest, each with its exponent."""
    if number < 1:
        raise ValueError(_TOO_SMALL)
    whole = fmpz(number)
    divisors: list[tuple[fmpz, int]] = whole.factor() if number < _WORD_END else whole.factor(trial_limit=TRIAL_COUNT)
    return divisors


def _after_division(number: int, divisors: list[tuple[fmpz, int]]) -> Factoring:
    if number < _WORD_END:
        return Factoring(number, tuple((int(prime), times) for prime, times in divisors))
    powers: list[tuple[int, int]] = []
    composites: list[Composite] = []
    for divisor, times in divisors:
        if divisor < TRIAL_SQUARE:
            powers.append((int(divisor), times))
        else:
            prime_powers, composites_left = _primes_and_composites(Composite(int(divisor), times))
            powers += prime_powers
            composites += composites_left
    return Factoring(number, tuple(powers), _smallest_first(composites))


def stage(factoring: Factoring, seconds_left: float = math.inf, sieve_bits: int = SIEVE_BITS) -> Stage:
    """Return what to do next. If a sieve would not end in the time that is left, curves run: they may find a factor."""
    if factoring.done:
        return Stage.DONE
    composite = factoring.composites[0]
    bits = composite.bits
    if bits <= MIXTURE_BITS:
        return Stage.SIEVE
    # An estimate of a sieve may be too long by a factor of two.
    if bits > sieve_bits or estimate.sieve_seconds(bits) > 2 * seconds_left:
        return Stage.CURVES
    return Stage.CURVES if composite.curves < estimate.curves_worth(bits) else Stage.SIEVE


def advance(
    factoring: Factoring, seconds_left: float = math.inf, slice_s: float = math.inf, sieve_bits: int = SIEVE_BITS
) -> Factoring:
    """Do steps for about `slice_s` seconds, at least one. A step is one curve, or one sieve to its end."""
    begun_s = time.monotonic()
    spent_s = 0.0
    while not factoring.done:
        next_stage = stage(factoring, seconds_left - spent_s, sieve_bits)
        if spent_s and spent_s + step_seconds(factoring.composites[0], next_stage) > slice_s:
            break
        factoring = _after_step(factoring, next_stage)
        spent_s = time.monotonic() - begun_s
    return factoring


def step_seconds(composite: Composite, next_stage: Stage) -> float:
    """Return the expected time of the next step on a composite."""
    if next_stage is Stage.SIEVE:
        return estimate.sieve_seconds(composite.bits)
    return estimate.curve_seconds(composite.bits, composite.curves + 1)


def seconds(factoring: Factoring, sieve_bits: int = SIEVE_BITS) -> float:
    """Return the expected time to the end; infinite if a composite is too large for a sieve."""
    if any(composite.bits > sieve_bits for composite in factoring.composites):
        return math.inf
    curves_factor = 1 + estimate.CURVES_SHARE
    return curves_factor * sum(estimate.sieve_seconds(composite.bits) for composite in factoring.composites)


def is_prime(number: int) -> bool:
    """Return whether a number is prime: below 2^81 a proof; above, BPSW (24 of GMP's 25 rounds) and Miller–Rabin."""
    return bool(fmpz(number).is_prime() if number < _PROVEN_BELOW else gmpy2.is_prime(number, 25))


def checked(number: int, powers: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the powers, ascending, each prime once. Raises WrongFactors if they are not the factors of the number."""
    merged = _merged(powers)
    if math.prod(factor**times for factor, times in merged) != number:
        raise WrongFactors(f"the factors found for {number} have another product: {merged}")
    for factor, _ in merged:
        if factor in _LOOKED_UP_PRIMES:
            continue
        if not (fmpz(factor).is_prime() if factor < _PROVEN_BELOW else fmpz(factor).is_probable_prime()):
            raise WrongFactors(f"{factor}, found for {number}, is not prime")
    return merged


def _merged(powers: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    exponents: dict[int, int] = {}
    for prime, times in powers:
        exponents[prime] = exponents.get(prime, 0) + times
    return sorted(exponents.items())


def _word_powers(number: int, times: int = 1) -> tuple[tuple[int, int], ...]:
    return tuple((int(prime), exponent * times) for prime, exponent in fmpz(number).factor())


def _after_step(factoring: Factoring, next_stage: Stage) -> Factoring:
    """Return the factorisation after one step on its smallest composite."""
    composite, *others = factoring.composites
    if next_stage is Stage.SIEVE:
        return _with_parts(factoring, others, composite, split(composite.value))
    index = composite.curves + 1
    divisor = curve(composite.value, index)
    composite = replace(composite, curves=index)
    if divisor is None:
        return replace(factoring, composites=_smallest_first([composite, *others]))
    return _with_parts(factoring, others, composite, [divisor, composite.value // divisor])


def _with_parts(factoring: Factoring, others: list[Composite], composite: Composite, parts: list[int]) -> Factoring:
    """Return the factorisation with a composite replaced by the parts that it was split into."""
    powers = list(factoring.powers)
    for part in parts:
        prime_powers, composites_left = _primes_and_composites(replace(composite, value=part))
        powers += prime_powers
        others = [*others, *composites_left]
    return Factoring(factoring.number, tuple(powers), _smallest_first(others))


def _smallest_first(composites: list[Composite]) -> tuple[Composite, ...]:
    return tuple(sorted(composites, key=lambda composite: composite.value))


def _primes_and_composites(composite: Composite) -> tuple[Iterable[tuple[int, int]], list[Composite]]:
    """Test a divisor, which takes microseconds; return the prime powers in it, and the composites that are left."""
    value, times = composite.value, composite.times
    if value < _WORD_END:
        return _word_powers(value, times), []
    if is_prime(value):
        return [(value, times)], []
    root, exponent = _prime_root(value)
    if exponent > 1:
        return _primes_and_composites(replace(composite, value=root, times=times * exponent))
    parts = _fermat_parts(value)
    if len(parts) == 1:
        return [], [composite]
    results = [_primes_and_composites(replace(composite, value=part)) for part in parts]
    return [power for powers, _ in results for power in powers], [rest for _, rests in results for rest in rests]


def _prime_root(value: int) -> tuple[int, int]:
    """Return r and a prime k with r^k = value, or value and 1. All prime factors are large, so k is small."""
    if gmpy2.is_power(value):
        exponent = 2
        while exponent < value.bit_length():
            root, exact = gmpy2.iroot(value, exponent)
            if exact:
                return int(root), exponent
            exponent = int(gmpy2.next_prime(exponent))
    return value, 1


def _fermat_parts(value: int) -> list[int]:
    """Return the parts into which Fermat's test splits an odd composite n; n alone if the test does not split it.

    A Carmichael number n passes the test for nearly every base b: b^(n-1) = 1 (mod n). The test computes this power by
    repeated squaring. If it meets a square root of 1 that is neither 1 nor -1, this root splits n. A further
    base may split the parts, too. So a few exponentiations do the work of a sieve.
    """
    parts = [value]
    for base in (2, 3, 5, 7, 11, 13, 17):
        root = _root_of_one(base, value)
        if root is None:
            break
        parts = [int(new) for part in parts for gcd in [gmpy2.gcd(part, root - 1)] for new in (gcd, part // gcd)]
        parts = [part for part in parts if part > 1]
    return parts


def _root_of_one(base: int, value: int) -> int | None:
    """Return the number whose square is the first 1 in Fermat's test; None if the value does not pass the test."""
    exponent = value - 1
    halvings = gmpy2.bit_scan1(exponent)
    power = gmpy2.powmod(base, exponent >> halvings, value)
    for _ in range(halvings):
        square = power * power % value
        if square == 1:
            return int(power)
        power = square
    return None


def load_pari() -> None:
    """Load PARI, which takes milliseconds, so that no number waits for it."""
    _pari()


def split(composite: int) -> list[int]:
    """Split a composite of more than 64 bits with PARI's method for its size, or without PARI by FLINT."""
    pari = _pari()
    if pari is None:
        return [int(prime) for prime, times in fmpz(composite).factor() for _ in range(times)]
    is_mixture = SIEVE_ALONE_BITS < composite.bit_length() <= MIXTURE_BITS
    primes, exponents = pari(composite).factorint(_PARI_MIXTURE if is_mixture else _PARI_SIEVE_ALONE)
    return [int(prime) for prime, times in zip(primes, exponents, strict=True) for _ in range(times)]


@cache
def _pari() -> Any:
    """Return PARI, or None without the extra. For worker processes only: PARI replaces signal handlers."""
    try:
        from cypari import pari
    except ImportError:
        return None
    pari.allocatemem(_PARI_STACK_BYTES >> 4, _PARI_STACK_BYTES, silent=True)
    pari("default(factor_proven, 0)")  # A proof takes long, and `checked` tests the factors anyway.
    return pari
