"""What the index of /values must have for some records: written anew, to compare with what the scripts write."""

from __future__ import annotations

from collections.abc import Mapping

from quart_app.values import notation
from quart_app.values.store import with_prefix


def members(factors: Mapping[str, str]) -> set[str]:
    """Return "prime:value", as the index has them, for every value and distinct prime factor of it."""
    return {
        f"{with_prefix(prime)}:{with_prefix(value)}"
        for value, text in factors.items()
        for prime in notation.primes(text)
    }
