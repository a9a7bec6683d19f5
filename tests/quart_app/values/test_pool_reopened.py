"""A pool that is opened again, as after a lost lease."""

from __future__ import annotations

import asyncio

import gmpy2
import pytest

from quart_app.values.pool import FactorPool

#: Of 26 and 60 digits, each of two primes; a process is needed for both.
MEDIUM = int(gmpy2.next_prime(5 * 10**12) * gmpy2.next_prime(7 * 10**12))
SIXTY_DIGITS = int(gmpy2.next_prime(3 * 10**29) * gmpy2.next_prime(8 * 10**29))


async def test_a_pool_that_was_left_with_an_error_waits_to_be_opened_again() -> None:
    """The lease was lost, or the service failed: a request waits for the next membership and is not given back.

    A database's stream is worked in order by one replica. A request given back there would stop it for good.
    """
    pool = FactorPool(processes=1)
    with pytest.raises(LookupError):
        async with pool:
            raise LookupError
    waiting = asyncio.create_task(pool.factorise(MEDIUM, 20))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async with pool:
        assert await waiting == "5000000000053 7000000000009"
    with pytest.raises(asyncio.CancelledError):
        await pool.factorise(SIXTY_DIGITS, 5)
