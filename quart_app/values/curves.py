"""Lenstra's elliptic curves, one at a time, by FLINT: small factors of numbers too large for a sieve.

python-flint offers the curves only behind `factor_smooth`, which starts from the same seed at each call (a second
call repeats the first one's curves), proves every prime on its way, and says nothing until all its curves are run.
The C function under it takes one curve, any bounds and any seed, so we call that one, in the library that
python-flint brings along. What it found is then known at once, also when the deadline strikes a moment later.

The schedule needs no table. With bounds B1 = 50·i and B2 = 50·B1 for the i-th curve the expected work to find a factor
of 12 to 25 digits stays within a tenth of what the best fixed bound for that size takes, by Dickman's function and
the cost of FLINT's two stages (`bench/curves.py` computes it). FLINT's own table lies a fifth to two fifths above.

GMP-ECM runs a curve two to three times faster, but no wheel brings it alone: the one that carries it pulls in a good
part of a computer algebra system.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import secrets
from functools import cache
from importlib import metadata

#: B1 of the i-th curve is i times this; B2 is B1 times STAGE_TWO
FIRST_STAGE = 50
STAGE_TWO = 50

#: a smaller B1 costs as much as this one: the set-up of a curve outweighs it
_LEAST_BOUND = 60

#: room for `flint_rand_t`, which is three words in FLINT 3
_RANDOM_STATE_BYTES = 512


def bound(index: int) -> int:
    """B1 of the curve with this number, counted from 1."""
    return max(_LEAST_BOUND, FIRST_STAGE * index)


def curve(number: int, index: int) -> int | None:
    """A proper divisor of a composite number that the curve with this index finds, not always a prime; else None."""
    flint = _library()
    first = bound(index)
    with _Integer(flint, number) as composite, _Integer(flint, 0) as divisor:
        found = flint.fmpz_factor_ecm(
            divisor.reference, 1, first, STAGE_TWO * first, _random_state(), composite.reference
        )
        value = divisor.value() if found else 0
    return value if 1 < value < number and number % value == 0 else None


class _Integer:
    """A FLINT integer for as long as the block lasts."""

    def __init__(self, flint: ctypes.CDLL, value: int) -> None:
        self._flint = flint
        self._word = ctypes.c_long(0)
        self.reference = ctypes.byref(self._word)
        flint.fmpz_set_str(self.reference, b"%x" % value, 16)

    def __enter__(self) -> _Integer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flint.fmpz_clear(self.reference)

    def value(self) -> int:
        room = ctypes.create_string_buffer(self._flint.fmpz_sizeinbase(self.reference, 16) + 2)
        self._flint.fmpz_get_str(room, 16, self.reference)
        return int(room.value, 16)


@cache
def _library() -> ctypes.CDLL:
    """FLINT itself: the copy in python-flint's wheel (already loaded by it), else the system's."""
    flint = ctypes.CDLL(_bundled() or ctypes.util.find_library("flint") or "libflint.so")
    flint.fmpz_factor_ecm.argtypes = [
        ctypes.c_void_p,  # the divisor found
        ctypes.c_ulong,  # number of curves
        ctypes.c_ulong,  # B1
        ctypes.c_ulong,  # B2
        ctypes.c_void_p,  # random state
        ctypes.c_void_p,  # the number
    ]
    flint.fmpz_sizeinbase.restype = ctypes.c_size_t
    return flint


def _bundled() -> str | None:
    files = metadata.files("python-flint") or []
    return next((str(file.locate()) for file in files if file.name.startswith("libflint")), None)


@cache
def _random_state() -> ctypes.Array[ctypes.c_char]:
    """One state for the process, seeded anew, so that a second try on one number runs other curves."""
    flint = _library()
    state = ctypes.create_string_buffer(_RANDOM_STATE_BYTES)
    flint.flint_rand_init(state)
    flint.flint_rand_set_seed(state, ctypes.c_ulong(secrets.randbits(64)), ctypes.c_ulong(secrets.randbits(64)))
    return state
