"""The settings of /values."""

from __future__ import annotations

import math

from pydantic import Field
from pydantic_settings import BaseSettings

from mesh import settings_config


class ValuesSettings(BaseSettings):
    """Limits of what may be asked, and how answers are found."""

    model_config = settings_config("VALUES_")

    max_digits: int = Field(1000, ge=1, le=4000, description="longest value")
    max_items: int = Field(10_000, ge=1, description="most values in one request")
    max_ttl_s: int = Field(7 * 86_400, ge=1, description="longest time to live; longer fills Redis for longer")
    max_answer: int = Field(100_000, ge=1, description="most values in one answer; more are to be paged for")
    max_answer_bytes: int = Field(
        8 << 20, ge=1024, description="longest answer of a GET; longer ones are to be paged for"
    )
    answers_bytes: int = Field(
        64 << 20, ge=1024, description="long answers that a replica keeps until they are sent; beyond it 503"
    )
    large_digits: int = Field(
        2_000_000, ge=1, description="digits of values from 2^64 up that a replica's requests wait for; beyond it 503"
    )
    chunk: int = Field(250, ge=1, description="small values that travel in one entry; fewer spread over more replicas")
    processes: int | None = Field(None, ge=1, description="worker processes for hard numbers; unset: one per core")
    hard_limit: int | None = Field(
        None, ge=1, description="hard numbers under way at once, beyond which 503; unset: four for each process"
    )
    brisk_limit: int = Field(256, ge=1, description="other numbers that are not done at once")
    sieve_digits: int = Field(
        95,
        ge=20,
        description="beyond it a number without small factors is hopeless: curves until the deadline, then 504",
    )
    job_s: int = Field(3600, ge=1, description="longest time that a job computes")
    job_kept_s: int = Field(3600, ge=1, description="how much longer its result can be asked for")
    max_jobs: int = Field(
        64, ge=1, description="unfinished jobs at once; each takes one place in the queue of each of its classes"
    )
    jobs_bytes: int = Field(
        64 << 20, ge=1024, description="bytes of Redis that all jobs and their results take; beyond it 503"
    )
    sweep_ms: int = Field(250, ge=10, description="between two looks for expired records")

    @property
    def sieve_bits(self) -> int:
        """Return `sieve_digits` in bits."""
        return math.ceil(self.sieve_digits * math.log2(10))
