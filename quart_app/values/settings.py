"""The settings of /values."""

from __future__ import annotations

import math

from pydantic import Field
from pydantic_settings import BaseSettings

from mesh import settings_config


class ValuesSettings(BaseSettings):
    """Limits of requests, and how factors are found and records removed."""

    model_config = settings_config("VALUES_")

    max_digits: int = Field(1000, ge=1, le=4000, description="most digits of a value")
    max_items: int = Field(10_000, ge=1, description="most values in one request")
    max_ttl_s: int = Field(7 * 86_400, ge=1, description="longest time to live; a longer one fills Redis for longer")
    max_answer: int = Field(100_000, ge=1, description="most values in one answer; a client asks for more page by page")
    max_answer_bytes: int = Field(
        8 << 20, ge=1024, description="longest answer of a GET, in bytes; a client asks for more page by page"
    )
    answers_bytes: int = Field(
        64 << 20, ge=1024, description="bytes of long answers that a replica keeps until they are sent; beyond this 503"
    )
    large_digits: int = Field(
        2_000_000,
        ge=1,
        description="digits, in all, of the values from 2^64 up for which clients of one replica wait; beyond this "
        "503. With more, they take more memory; with fewer, clients get 503 sooner",
    )
    chunk: int = Field(
        250, ge=1, description="small values in one request to a class; with fewer, more replicas share the work"
    )
    processes: int | None = Field(None, ge=1, description="worker processes for hard numbers; unset: one per core")
    hard_limit: int | None = Field(
        None,
        ge=1,
        description="hard numbers in progress at once; beyond this 503; unset: four for each process. With more, some "
        "would wait for a process until their deadlines",
    )
    brisk_limit: int = Field(
        256,
        ge=1,
        description="numbers in the factor pool at once, in addition to the hard limit; beyond this 503. With more, "
        "some would wait for a process until their deadlines",
    )
    sieve_digits: int = Field(
        95,
        ge=20,
        description="most digits for a sieve; a longer number that curves do not split in time gets 504",
    )
    job_s: int = Field(
        3600, ge=1, description="time from the POST of a job to its deadline; then the job fails if it is not done"
    )
    job_kept_s: int = Field(3600, ge=1, description="how long the result of a job is kept after the job's deadline")
    max_jobs: int = Field(
        64, ge=1, description="unfinished jobs at once; each takes one place in the queue of each of its classes"
    )
    jobs_bytes: int = Field(
        64 << 20, ge=1024, description="bytes of Redis that all jobs and their results take; beyond this 503"
    )
    sweep_ms: int = Field(
        250,
        ge=10,
        description="pause between two looks for expired records; a longer one keeps them in memory for longer, a "
        "shorter one costs Redis more commands",
    )

    @property
    def sieve_bits(self) -> int:
        """Return `sieve_digits` in bits."""
        return math.ceil(self.sieve_digits * math.log2(10))
