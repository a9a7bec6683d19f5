"""The history of one run: every request of the load with its answer, and every look at the data."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

#: The first tag of a put. The tag is also the ttl in seconds, so it is longer than any run.
FIRST_TAG = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `status` is 0 when the connection ended without an answer; times are monotonic, in seconds."""

    path: str
    asked: Any
    status: int
    answer: Any
    error: str
    called: float
    returned: float
    #: the databases that the answer says it lacks: its header `Missing-Databases`
    left_out: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def took_s(self) -> float:
        return self.returned - self.called

    @property
    def settled(self) -> float:
        """The time by which the request had certainly taken effect; infinite when it was not confirmed."""
        return self.returned if self.ok else math.inf


@dataclass(frozen=True, slots=True)
class Look:
    """The records in Redis at one moment between `called` and `returned`.

    `tags` maps each value to the tag of its record: None without a record, -1 when `where` names a database without it.
    """

    tags: dict[int, int | None]
    called: float
    returned: float


@dataclass
class History:
    """All requests and looks of one run."""

    samples: list[Sample] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    #: a different tag for each put
    tags: Iterator[int] = field(default_factory=lambda: itertools.count(FIRST_TAG))

    def of(self, path: str) -> Iterator[Sample]:
        return (sample for sample in self.samples if sample.path.startswith(path))

    def says(self) -> str:
        counted = Counter(f"{sample.path.split('/')[1]} {sample.status or sample.error}" for sample in self.samples)
        return ", ".join(f"{what}: {count}" for what, count in sorted(counted.items()))


async def send(client: httpx.AsyncClient, path: str, asked: Any = None) -> Sample:
    """Send a POST of `asked`, or a GET when it is None, and return a sample, also after a failure."""
    called = time.monotonic()
    status, answer, error, left_out = 0, None, "", ""
    try:
        response = await (client.get(path) if asked is None else client.post(path, json=asked))
        status = response.status_code
        left_out = response.headers.get("Missing-Databases", "")
        answer = response.json()
    except (httpx.HTTPError, ValueError) as failure:
        error = type(failure).__name__
    return Sample(path, asked, status, answer, error, called, time.monotonic(), left_out)
