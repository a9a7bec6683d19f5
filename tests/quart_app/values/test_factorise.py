"""The engine: right at every size, and never quietly wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import gmpy2
import pytest

from quart_app.values import factorise as engine
from quart_app.values.factorise import Composite, Factoring, Stage, WrongFactors, factorise

RANDOM = random.Random(20240101)


def prime(digits: int) -> int:
    """A random prime of this many digits."""
    return int(gmpy2.next_prime(RANDOM.randrange(10 ** (digits - 1), 10**digits)))


def is_prime(number: int) -> bool:
    """An independent test: Miller–Rabin with the first 25 primes as bases, in Python's integers alone."""
    bases = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97]
    if number < 2 or any(number % base == 0 for base in bases):
        return number in bases
    odd = (number - 1) >> (twos := ((number - 1) & (1 - number)).bit_length() - 1)
    for base in bases:
        power = pow(base, odd, number)
        if power not in (1, number - 1) and not any(
            (power := power * power % number) == number - 1 for _ in range(twos - 1)
        ):
            return False
    return True


def assert_right(number: int, factors: list[int]) -> None:
    """The factors are ascending, prime by a test that is none of the engine's, and their product is the number."""
    assert factors == sorted(factors), number
    product = 1
    for factor in factors:
        assert is_prime(factor), (number, factor)
        product *= factor
    assert product == number


def carmichael(digits: int) -> int:
    """A Carmichael number of about this size: (6k + 1)(12k + 1)(18k + 1), all three prime."""
    third = digits // 3
    while True:
        k = RANDOM.randrange(10 ** (third - 2), 10 ** (third - 1))
        if all(gmpy2.is_prime(m * k + 1) for m in (6, 12, 18)):
            return (6 * k + 1) * (12 * k + 1) * (18 * k + 1)


def smooth() -> int:
    """A product of many small primes, some of them repeated."""
    return math.prod(RANDOM.choice((2, 3, 5, 7, 11, 101, 7919, 7927, 65537)) for _ in range(RANDOM.randrange(1, 40)))


#: kind -> (how many, one of them)
KINDS: dict[str, tuple[int, Callable[[], int]]] = {
    "all below 10^4": (0, lambda: 0),
    "32 bits": (2000, lambda: RANDOM.randrange(1, 1 << 32)),
    "64 bits": (2000, lambda: RANDOM.randrange(1, 1 << 64)),
    "around 2^64": (500, lambda: (1 << 64) + RANDOM.randrange(-1000, 1000)),
    "around 2^81": (100, lambda: (1 << 81) + RANDOM.randrange(-1000, 1000)),
    "90 bits": (300, lambda: RANDOM.getrandbits(90) + 1),
    "110 bits": (150, lambda: RANDOM.getrandbits(110) + 1),
    "two primes, 20 digits": (200, lambda: prime(10) * prime(10)),
    "two primes, 26 digits": (150, lambda: prime(13) * prime(13)),
    "two primes, 32 digits": (60, lambda: prime(16) * prime(16)),
    "two primes, 40 digits": (20, lambda: prime(20) * prime(20)),
    "two primes, 46 digits": (6, lambda: prime(23) * prime(23)),
    "a small factor of a large number": (20, lambda: prime(10) * prime(50)),
    "primes": (300, lambda: prime(RANDOM.randrange(2, 40))),
    "large primes": (20, lambda: prime(200)),
    "squares of primes": (200, lambda: prime(RANDOM.randrange(3, 30)) ** 2),
    "powers of primes": (300, lambda: prime(RANDOM.randrange(1, 25)) ** RANDOM.randrange(2, 30)),
    "powers of composites": (150, lambda: (prime(9) * prime(9)) ** RANDOM.randrange(2, 6)),
    "smooth": (1500, smooth),
    "Carmichael": (200, lambda: carmichael(RANDOM.choice((12, 18, 24, 30, 60)))),
    "factorials": (100, lambda: math.factorial(RANDOM.randrange(1, 300))),
    "2^k - 1": (120, lambda: 2 ** RANDOM.randrange(1, 130) - 1),
    "10^k + 1": (40, lambda: 10 ** RANDOM.randrange(1, 40) + 1),
    "neighbours of powers of two": (600, lambda: max(1, 2 ** RANDOM.randrange(1, 100) + RANDOM.randrange(-3, 4))),
    "squares of composites, repeated small ones": (964, lambda: (RANDOM.getrandbits(30) + 1) ** 2 * smooth()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(110)
def test_random_numbers_of_every_kind(kind: str) -> None:
    """10 000 numbers against an independent check: no wrong answer."""
    count, make = KINDS[kind]
    numbers: Iterator[int] = (make() for _ in range(count)) if count else iter(range(1, 10_000))
    for number in numbers:
        assert_right(number, factorise(number))


def test_ten_thousand_random_numbers_are_tried() -> None:
    """The table above has at least so many, as the test before this one says."""
    assert sum(count for count, _ in KINDS.values()) >= 10_000


@pytest.mark.parametrize("number", [0, -1, -144, -(1 << 70)])
def test_numbers_below_one_are_refused(number: int) -> None:
    """Only positive numbers have prime factors."""
    with pytest.raises(ValueError, match="from 1 up"):
        factorise(number)


def test_without_pari_the_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra makes it faster, not different."""
    monkeypatch.setattr(engine, "_pari", lambda: None)
    for number in [prime(10) * prime(11), prime(15) * prime(15), prime(20) * prime(22), prime(8) ** 3 * prime(30)]:
        assert_right(number, factorise(number))


def test_a_wrong_product_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that loses a factor is found out, on both paths."""
    whole = engine.fmpz

    class Lossy:
        def __init__(self, number: int) -> None:
            self._number = whole(number)

        def factor(self, **options: int) -> list[tuple[int, int]]:
            return self._number.factor(**options)[1:]

        def is_prime(self) -> bool:
            return bool(self._number.is_prime())

        def __add__(self, other: int) -> Lossy:
            return Lossy(int(self._number) + other)

    monkeypatch.setattr(engine, "fmpz", Lossy)
    monkeypatch.setattr(engine, "_TOP_BIT", Lossy(1 << 63))
    for number in (1_000_003, 2 * 3 * 1_000_003, 2**60 * 5, 2**60 * 15, 2 * 3 * 7**40):
        with pytest.raises(WrongFactors, match="another product"):
            factorise(number)


def test_a_composite_factor_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that calls a composite a prime is found out."""
    n = prime(12) * prime(12)
    with pytest.raises(WrongFactors, match="is not prime"):
        Factoring(n * 2, ((2, 1), (n, 1))).checked_factors()
    with pytest.raises(WrongFactors, match="is not prime"):
        Factoring(n**2, ((n, 2),)).checked_factors()
    whole = engine.fmpz

    class Lazy:
        def __init__(self, number: int) -> None:
            self._number = whole(number)

        def factor(self, **_: int) -> list[tuple[object, int]]:
            return [(self._number, 1)]

        def is_prime(self) -> bool:
            return bool(self._number.is_prime())

        def __add__(self, other: int) -> Lazy:
            return Lazy(int(self._number) + other)

    monkeypatch.setattr(engine, "fmpz", Lazy)
    monkeypatch.setattr(engine, "_TOP_BIT", Lazy(1 << 63))
    for number in (15, 1_000_003 * 1_000_033, (1 << 63) + 1):
        with pytest.raises(WrongFactors, match="is not prime"):
            factorise(number)


def test_an_unfinished_factorisation_has_no_factors_but_says_what_is_known() -> None:
    """Half a result must not be taken for one."""
    large = prime(40) * prime(40)
    begun = engine.begin(2**3 * 101 * large)
    assert begun.known_factors() == "2 2 2 101"
    assert begun.composites == (Composite(large),)
    with pytest.raises(ValueError, match="not finished"):
        begun.checked_factors()


def test_a_carmichael_number_is_split_by_the_test_that_tells_it_composite() -> None:
    """No sieve for it: the strong test leaves a divisor behind."""
    assert engine.begin(carmichael(90)).done


def test_what_divides_several_times_is_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A square costs one sieve, not two."""
    sieved: list[int] = []
    real = engine.split
    monkeypatch.setattr(engine, "split", lambda number: sieved.append(number) or real(number))
    root = prime(12) * prime(12)
    assert_right(root**2, factorise(root**2))
    assert sieved == [root]


def stage_of(digits: int, *, curves: int = 0, **limits: float) -> Stage:
    return engine.choose_stage(Factoring(10**digits + 1, (), (Composite(10 ** (digits - 1), 1, curves),)), **limits)


def test_the_stages() -> None:
    """The sieve begins at once up to 42 digits, and after some curves above; past the limit there are only curves."""
    assert engine.choose_stage(Factoring(6, ((2, 1), (3, 1)))) is Stage.DONE
    assert stage_of(30) is Stage.SIEVE
    assert stage_of(60) is Stage.CURVES
    assert stage_of(60, curves=1000) is Stage.SIEVE
    assert stage_of(120, curves=10**6) is Stage.CURVES


def test_a_sieve_that_cannot_end_in_time_gives_way_to_curves() -> None:
    """Curves may find a factor by luck, and the sieve would certainly be too late."""
    assert stage_of(80, curves=1000, seconds_left=3600) is Stage.SIEVE
    assert stage_of(80, curves=1000, seconds_left=5) is Stage.CURVES


def test_a_hopeless_number_gives_its_small_factors() -> None:
    """Curves go on slice by slice, and what they find is known at once."""
    small = prime(10)
    factoring = engine.begin(small * prime(70) * prime(80))
    for _ in range(200):
        factoring = engine.advance(factoring, slice_s=0.05)
        if factoring.powers:
            break
    assert factoring.known_factors() == str(small)
    assert not factoring.done
    assert small * math.prod(c.value for c in factoring.composites) == factoring.number


def test_a_slice_ends() -> None:
    """A slice of curves takes about the time it was given."""
    factoring = engine.begin(prime(60) * prime(60))
    later = engine.advance(factoring, slice_s=0.1)
    assert 0 < later.composites[0].curves < 500
