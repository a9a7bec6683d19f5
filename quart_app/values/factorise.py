"""The engine: it finds the prime factors of a number, `factorise(n)`.

The method depends on the size of what is still to be split. `python -m bench factorise` repeats the measurements;
`docs/factorisation.md` has the licences and the wheels.

| size or kind | method | reason |
| --- | --- | --- |
| below 2^64 | FLINT | 0.5 to 15 µs, 0.3 ms for two primes of 32 bits; PARI takes 4 to 900 µs, Python 40 to 600 µs |
| small prime factors | FLINT | divides 30 digits by the first 1000 primes in 6 µs |
| prime or perfect power | GMP (gmpy2) | 10 to 100 µs; FLINT and PARI take 1 to 40 ms to prove a large prime |
| Carmichael number or similar | a strong test | the test that shows that it is composite also finds a divisor |
| up to 140 bits | PARI | a sieve, from 91 bits on with PARI's other methods; a quarter to a half of FLINT's time |
| up to `SIEVE_BITS` | some curves, then PARI's sieve | three quarters of FLINT's time at 40 to 75 digits |
| larger | curves (FLINT) | a sieve would take more than an hour; curves find small factors |

PARI (`cypari`, 7 MB of memory) is under the GPL, so it is an extra: `pip install quart-mesh[pari]`. Without the extra,
FLINT does PARI's work, and takes 1.2 to 4 times as long between 20 and 60 digits.

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
from quart_app.values.curves import run_curve

#: Every number is first divided by this number of small primes: 30 digits in 6 µs. Fewer find less; more take longer.
TRIAL_COUNT = 1000
#: The square of the last of these primes. A number below the square is prime if none of these primes divides it.
TRIAL_SQUARE = 7919**2

SMALL_BITS = 64  # a small number fits in a machine word; FLINT factors it in 0.3 ms at most
_SMALL_END = 1 << SMALL_BITS  # the first number that is not small
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
#: Between these sizes, a mixture of all of PARI's methods is fastest. For smaller numbers PARI only sieves. So it
#: does for larger ones, because curves have run before.
MIXTURE_BITS = 140
SIEVE_ALONE_BITS = 90

#: The sieve is not tried beyond this many bits: 95 digits, which take an hour. Callers may pass another `sieve_bits`.
SIEVE_BITS = 315

#: PARI's stack begins with a sixteenth of this size, and may grow to all of it. A number of 80 digits needs a tenth.
_PARI_STACK_BYTES = 1 << 30
#: Flags of PARI's `factorint`: 2 skips PARI's own curves, 4 skips Pollard's rho and Shanks' method.
_PARI_MIXTURE, _PARI_SIEVE_ALONE = 0, 2 | 4


class WrongFactors(ArithmeticError):
    """The factors that a library returned are not the prime factors of the number."""


class Stage(StrEnum):
    """What the engine does with a number."""

    DIVISION = "division"  # the cheap steps (see `begin`), while a process of the pool does them
    CURVES = "curves"
    SIEVE = "sieve"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Composite:
    """A divisor that is still to be split, with its exponent in the number. `curves` is how many curves ran on it."""

    value: int
    exponent: int = 1
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

    def checked_factors(self) -> str:
        """Return the prime factors as text, after a check. Raises WrongFactors; ValueError if composites are left."""
        if self.composites:
            raise ValueError("the factorisation is not finished")
        return notation.powers(checked_powers(self.number, self.powers))

    def known_factors(self) -> str:
        """Return the prime factors found so far, as text."""
        return notation.powers(_merge_powers(self.powers))


def factorise(number: int) -> list[int]:
    """Return the prime factors, ascending, with repetitions; no time limit. Raises ValueError below 1, WrongFactors."""
    return _checked_factors_of_small(number) if number < _SMALL_END else notation.expanded(find_factors(number))


def find_factors(number: int) -> str:
    """Return the prime factors as text (see `notation`). Raises as `factorise` does."""
    if number < _SMALL_END:
        return factors_of_small(number)
    factoring = begin(number)
    while not factoring.done:
        factoring = advance(factoring)
    return factoring.checked_factors()


def factors_of_small(number: int) -> str:
    """Return the prime factors of a number below 2^64 as text. Raises as `factorise` does."""
    return notation.repeated(_checked_factors_of_small(number))


def _checked_factors_of_small(number: int) -> list[int]:
    """Return the checked prime factors of a number below 2^64. FLINT takes nine tenths of the time."""
    if number < _TEST_FIRST_FROM:
        if number < 1:
            raise ValueError(_TOO_SMALL)
        flint_number = fmpz(number)
        powers = flint_number.factor()
        if len(powers) == 1 and powers[0][1] == 1 and flint_number.is_prime():  # FLINT found one prime: test it
            return [number]
    else:
        flint_number = fmpz(number) if number < _SIGNED_END else _TOP_BIT + (number - _SIGNED_END)
        if number & 1 and flint_number.is_prime():
            return [number]
        powers = flint_number.factor()
    primes: list[int] = []
    for prime, exponent in powers:
        factor = int(prime)
        if not (factor in _LOOKED_UP_PRIMES if factor < _LOOKED_UP_BELOW else prime.is_prime()):
            raise WrongFactors(f"{factor}, found for {number}, is not prime")
        primes += [factor] * exponent
    if math.prod(primes) != number:
        raise WrongFactors(f"the factors found for {number} have another product: {primes}")
    primes.sort()
    return primes


def begin(number: int) -> Factoring:
    """Do the cheap steps: divide by small primes, then test the rest. Raises ValueError for a number below 1."""
    return _after_division(number, _small_primes_and_rest(number))


def begin_unless_long(number: int, most_bits: int) -> Factoring | None:
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
    value = fmpz(number)
    divisors: list[tuple[fmpz, int]] = value.factor() if number < _SMALL_END else value.factor(trial_limit=TRIAL_COUNT)
    return divisors


def _after_division(number: int, divisors: list[tuple[fmpz, int]]) -> Factoring:
    """Return the factorisation after the test of each divisor that may be composite."""
    if number < _SMALL_END:
        return Factoring(number, tuple((int(prime), exponent) for prime, exponent in divisors))
    powers: list[tuple[int, int]] = []
    composites: list[Composite] = []
    for divisor, exponent in divisors:
        if divisor < TRIAL_SQUARE:
            powers.append((int(divisor), exponent))
        else:
            prime_powers, composites_left = _test_divisor(Composite(int(divisor), exponent))
            powers += prime_powers
            composites += composites_left
    return Factoring(number, tuple(powers), _smallest_first(composites))


def choose_stage(factoring: Factoring, seconds_left: float = math.inf, sieve_bits: int = SIEVE_BITS) -> Stage:
    """Return what to do next. If a sieve would not end in `seconds_left`, curves run: they may find a factor."""
    if factoring.done:
        return Stage.DONE
    composite = factoring.composites[0]
    bits = composite.bits
    if bits <= MIXTURE_BITS:
        return Stage.SIEVE
    # The estimate may be twice as long as the sieve.
    if bits > sieve_bits or estimate.sieve_seconds(bits) > 2 * seconds_left:
        return Stage.CURVES
    return Stage.CURVES if composite.curves < estimate.curve_count_before_sieve(bits) else Stage.SIEVE


def advance(
    factoring: Factoring, seconds_left: float = math.inf, slice_s: float = math.inf, sieve_bits: int = SIEVE_BITS
) -> Factoring:
    """Do steps for about `slice_s` s, at least one: a curve, or, if it fits in `seconds_left`, a sieve to its end."""
    begun_s = time.monotonic()
    spent_s = 0.0
    while not factoring.done:
        next_stage = choose_stage(factoring, seconds_left - spent_s, sieve_bits)
        if spent_s and spent_s + expected_step_seconds(factoring.composites[0], next_stage) > slice_s:
            break
        factoring = _after_step(factoring, next_stage)
        spent_s = time.monotonic() - begun_s
    return factoring


def expected_step_seconds(composite: Composite, next_stage: Stage) -> float:
    """Return the expected time of the next step on a composite."""
    if next_stage is Stage.SIEVE:
        return estimate.sieve_seconds(composite.bits)
    return estimate.curve_seconds(composite.bits, composite.curves + 1)


def expected_seconds(factoring: Factoring, sieve_bits: int = SIEVE_BITS) -> float:
    """Return the expected time to the end; infinite if a composite has more than `sieve_bits` bits."""
    if any(composite.bits > sieve_bits for composite in factoring.composites):
        return math.inf
    time_ratio = 1 + estimate.CURVES_SHARE
    return time_ratio * sum(estimate.sieve_seconds(composite.bits) for composite in factoring.composites)


def is_prime(number: int) -> bool:
    """Return whether a number is prime: below 2^81 a proof; above, BPSW (24 of GMP's rounds) and one Miller–Rabin."""
    return bool(fmpz(number).is_prime() if number < _PROVEN_BELOW else gmpy2.is_prime(number, 25))


def checked_powers(number: int, powers: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the powers, ascending, each prime once. Raises WrongFactors if they are not the factors of the number."""
    merged = _merge_powers(powers)
    if math.prod(factor**exponent for factor, exponent in merged) != number:
        raise WrongFactors(f"the factors found for {number} have another product: {merged}")
    for factor, _ in merged:
        if factor in _LOOKED_UP_PRIMES:
            continue
        if not (fmpz(factor).is_prime() if factor < _PROVEN_BELOW else fmpz(factor).is_probable_prime()):
            raise WrongFactors(f"{factor}, found for {number}, is not prime")
    return merged


def _merge_powers(powers: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the powers, ascending, each prime once."""
    exponents: dict[int, int] = {}
    for prime, exponent in powers:
        exponents[prime] = exponents.get(prime, 0) + exponent
    return sorted(exponents.items())


def _powers_of_small(number: int, times: int = 1) -> tuple[tuple[int, int], ...]:
    """Return the prime powers in `number` to the power of `times`."""
    return tuple((int(prime), exponent * times) for prime, exponent in fmpz(number).factor())


def _after_step(factoring: Factoring, next_stage: Stage) -> Factoring:
    """Return the factorisation after one step on its smallest composite."""
    composite, *others = factoring.composites
    if next_stage is Stage.SIEVE:
        return _with_parts(factoring, others, composite, split(composite.value))
    index = composite.curves + 1
    divisor = run_curve(composite.value, index)
    composite = replace(composite, curves=index)
    if divisor is None:
        return replace(factoring, composites=_smallest_first([composite, *others]))
    return _with_parts(factoring, others, composite, [divisor, composite.value // divisor])


def _with_parts(factoring: Factoring, others: list[Composite], composite: Composite, parts: list[int]) -> Factoring:
    """Return the factorisation with `parts` in place of the composite; `others` are its other composites."""
    powers = list(factoring.powers)
    for part in parts:
        prime_powers, composites_left = _test_divisor(replace(composite, value=part))
        powers += prime_powers
        others = [*others, *composites_left]
    return Factoring(factoring.number, tuple(powers), _smallest_first(others))


def _smallest_first(composites: list[Composite]) -> tuple[Composite, ...]:
    return tuple(sorted(composites, key=lambda composite: composite.value))


def _test_divisor(divisor: Composite) -> tuple[Iterable[tuple[int, int]], list[Composite]]:
    """Test a divisor, which takes microseconds; return the prime powers in it, and the composites that are left."""
    # Each call for a root or a part of the divisor gets a smaller number, so the recursion ends.
    value, exponent = divisor.value, divisor.exponent
    if value < _SMALL_END:
        return _powers_of_small(value, exponent), []
    if is_prime(value):
        return [(value, exponent)], []
    root, degree = _root_and_degree(value)
    if degree > 1:
        return _test_divisor(replace(divisor, value=root, exponent=exponent * degree))
    parts = _fermat_parts(value)
    if len(parts) == 1:
        return [], [divisor]
    results = [_test_divisor(replace(divisor, value=part)) for part in parts]
    return [power for powers, _ in results for power in powers], [left for _, lefts in results for left in lefts]


def _root_and_degree(value: int) -> tuple[int, int]:
    """Return a root of the value and its degree, a prime; if no root is an integer, the value and 1."""
    if gmpy2.is_power(value):
        degree = 2
        while degree < value.bit_length():
            root, is_exact = gmpy2.iroot(value, degree)
            if is_exact:
                return int(root), degree
            degree = int(gmpy2.next_prime(degree))
    return value, 1


def _fermat_parts(value: int) -> list[int]:
    """Return the parts into which Fermat's test splits an odd composite n; only n if the test does not split it.

    A Carmichael number n passes the test for nearly every base b: b^(n-1) = 1 (mod n). The test computes this power by
    repeated squaring. If it meets a square root of 1 that is neither 1 nor -1, this root splits n. A further base may
    split the parts, too; an eighth would seldom do so. Thus a few exponentiations save a sieve.
    """
    parts = [value]
    for base in (2, 3, 5, 7, 11, 13, 17):
        root = _root_of_one(base, value)
        if root is None:  # an ordinary composite, for which the first base shows it
            break
        parts = [int(half) for part in parts for gcd in [gmpy2.gcd(part, root - 1)] for half in (gcd, part // gcd)]
        parts = [part for part in parts if part > 1]
    return parts


def _root_of_one(base: int, value: int) -> int | None:
    """Return the number whose square is the first 1 in Fermat's test; None if the value does not pass the test."""
    exponent = value - 1
    halving_count = gmpy2.bit_scan1(exponent)
    power = gmpy2.powmod(base, exponent >> halving_count, value)
    for _ in range(halving_count):
        square = power * power % value
        if square == 1:
            return int(power)
        power = square
    return None


def load_pari() -> None:
    """Load PARI, which takes milliseconds. Each worker process does this at its start, so no number waits for it."""
    _pari()


def split(value: int) -> list[int]:
    """Return all prime factors of a composite of more than 64 bits, found by PARI; without the extra, by FLINT."""
    pari = _pari()
    if pari is None:
        return [int(prime) for prime, exponent in fmpz(value).factor() for _ in range(exponent)]
    mixes_methods = SIEVE_ALONE_BITS < value.bit_length() <= MIXTURE_BITS
    primes, exponents = pari(value).factorint(_PARI_MIXTURE if mixes_methods else _PARI_SIEVE_ALONE)
    return [int(prime) for prime, exponent in zip(primes, exponents, strict=True) for _ in range(exponent)]


@cache
def _pari() -> Any:
    """Return PARI, or None without the extra. For worker processes only: PARI replaces signal handlers."""
    try:
        from cypari import pari
    except ImportError:
        return None
    # PARI begins with a sixteenth of the stack, and enlarges it when a number needs more.
    pari.allocatemem(_PARI_STACK_BYTES >> 4, _PARI_STACK_BYTES, silent=True)
    pari("default(factor_proven, 0)")  # A proof takes long, and `checked_powers` tests the factors anyway.
    return pari
