"""What was asked and what came back: every request of a load, and every look at the data."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

#: The first tag of a put, in seconds to live: more than any run takes.
FIRST_TAG = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `status` is 0 where the connection ended without an answer; times are seconds of one clock."""

    path: str
    asked: Any
    status: int
    answer: Any
    error: str
    called: float
    returned: float

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def took_s(self) -> float:
        return self.returned - self.called

    @property
    def settled(self) -> float:
        """When it had taken effect for certain; never, for one that was not confirmed."""
        return self.returned if self.ok else math.inf


@dataclass(frozen=True, slots=True)
class Look:
    """The records as they lay in Redis at one moment between two: value to tag (-1: torn, None: none)."""

    tags: dict[int, int | None]
    called: float
    returned: float


@dataclass
class History:
    """Everything known of one run."""

    samples: list[Sample] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    #: spans in which some database had no live holder, so that a GET could not know its records
    holderless: list[tuple[float, float]] = field(default_factory=list)

    #: no two puts have the same
    tags: Iterator[int] = field(default_factory=lambda: itertools.count(FIRST_TAG))

    def of(self, path: str) -> Iterator[Sample]:
        return (sample for sample in self.samples if sample.path.startswith(path))

    def in_doubt(self, sample: Sample) -> bool:
        """Whether a GET may have missed records whose holder was gone."""
        return any(sample.called < end and began < sample.returned for began, end in self.holderless)

    def says(self) -> str:
        counted = Counter(f"{sample.path.split('/')[1]} {sample.status or sample.error}" for sample in self.samples)
        return ", ".join(f"{what}: {count}" for what, count in sorted(counted.items()))


async def send(client: httpx.AsyncClient, path: str, asked: Any = None) -> Sample:
    """One request, a POST where there is something to post; whatever happens is a sample."""
    called = time.monotonic()
    status, answer, error = 0, None, ""
    try:
        response = await (client.get(path) if asked is None else client.post(path, json=asked))
        status = response.status_code
        answer = response.json()
    except (httpx.HTTPError, ValueError) as failure:
        error = type(failure).__name__
    return Sample(path, asked, status, answer, error, called, time.monotonic())
