"""How many requests of an operation may run at once, or in a time: all together, or for each value of a field.

A limit travels as text, which limits.lua reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import msgspec

from mesh.errors import InvalidBody, UsageError
from mesh.wire.codec import encode

#: A value with more characters is replaced by its beginning and its hash, because it is a part of keys in Redis. With a
#: larger number, such keys would take more memory.
MOST_VALUE_CHARACTERS = 100
#: Longest `per` of a rate: its µs are exact in Lua.
LONGEST_PER = timedelta(days=366)
_ONE_US = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Limit:
    """How many requests of an operation may run at once (`concurrency`), or in a time (`rate` in `per`).

    `by` names a field of the body: the limit holds for each value of the field. Without `by`, it holds for all requests
    together. Requests beyond the `concurrency` wait in order, each until its deadline. With `concurrency=1` they also
    run in this order.

    A `rate` lets `burst` requests begin at once (as many as `rate`, if `burst` is not given), and then one every
    `per / rate`. `when` says what becomes of requests that come too soon: "delay" lets each wait for its time, "refuse"
    raises Limited. Raises UsageError.
    """

    by: str = ""
    concurrency: int | None = None
    rate: int | None = None
    per: timedelta | None = None
    burst: int | None = None
    when: Literal["delay", "refuse"] = "delay"

    def __post_init__(self) -> None:
        if not isinstance(self.by, str):
            raise UsageError(f"Limit(by=) is the name of a field of the body, not {self.by!r:.100}")
        if (self.concurrency is None) == (self.rate is None):
            raise UsageError("a Limit has either concurrency=… or rate=… and per=…")
        for name in ("concurrency", "rate", "burst"):
            number = getattr(self, name)
            # `type`, because `isinstance` would take True for 1.
            if number is not None and (type(number) is not int or not 1 <= number <= 1_000_000):
                raise UsageError(f"Limit({name}=) is a number from 1 to 1000000, not {number!r:.100}")
        if self.when not in ("delay", "refuse"):
            raise UsageError(f'Limit(when=) is "delay" or "refuse", not {self.when!r:.100}')
        if self.rate is None:
            if (self.per, self.burst, self.when) != (None, None, "delay"):
                raise UsageError("Limit(per=, burst=, when=) belong to rate=…")
        elif not isinstance(self.per, timedelta) or not timedelta(0) < self.per <= LONGEST_PER:
            raise UsageError(f"Limit(per=) is a time such as timedelta(minutes=1), not {self.per!r:.100}")

    def __str__(self) -> str:
        """Return the limit as people read it: "1 at once for each customer", "10 in 60 s, others are refused"."""
        for_each = f" for each {self.by}" if self.by else ""
        if self.rate is None or self.per is None:
            return f"{self.concurrency} at once{for_each}"
        burst = "" if self.burst is None else f", {self.burst} of them at once"
        refused = ", others are refused" if self.when == "refuse" else ""
        return f"{self.rate} in {self.per.total_seconds():g} s{for_each}{burst}{refused}"

    @property
    def interval_ms(self) -> int:
        """The time between two requests of a rate, in ms, rounded up; 0 if the limit has no rate."""
        # -(-a // b) is a / b, rounded up.
        return 0 if self.rate is None or self.per is None else -(-(self.per // _ONE_US) // (self.rate * 1000))

    def words(self, op: str, body: Any) -> str:
        """Return the limit of a request with this body as one text of several words, for limits.lua.

        Raises InvalidBody.
        """
        # A rate has no lane, but limits.lua counts its requests under a name of the same form.
        lane_name = f"{op}:{self._value_of(body)}" if self.by else f"{op}:"
        if self.concurrency is not None:
            return f"lane {self.concurrency} {lane_name}"
        assert self.rate is not None and self.per is not None  # for mypy: `__post_init__` makes sure of this
        interval_us = -(-(self.per // _ONE_US) // self.rate)  # rounded up, as in `interval_ms`
        return f"rate {interval_us} {self.burst or self.rate} {self.when} {lane_name}"

    def _value_of(self, body: Any) -> str:
        """Return the value of the field `by` as text: text as it is, all else as JSON. Raises InvalidBody."""
        field_value = body.get(self.by) if isinstance(body, Mapping) else getattr(body, self.by)
        try:
            value = msgspec.to_builtins(field_value)
            text = value if isinstance(value, str) else encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidBody(f"the field {self.by} cannot be the value of a limit: {error}") from error
        if len(text) <= MOST_VALUE_CHARACTERS:
            return text
        return f"{text[:MOST_VALUE_CHARACTERS]}…{hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()}"
