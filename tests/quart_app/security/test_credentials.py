"""The limit on guessing: who is slowed down, and who is not."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh.errors import Unavailable
from quart_app.security.credentials import Attempt, CredentialLimiter, Limits, TooManyAttempts, source_of

LIMITS = Limits(most_per_pair=3, window_s=60, most_per_source=5, most_per_account=7, most_registrations=2)
ANN, OFFICE, ATTACKER = "ann@example.com", "192.0.2.1", "203.0.113.9"


async def admitted(limiter: CredentialLimiter, count: int, account: str = ANN, source: str = ATTACKER) -> list[Attempt]:
    """The admitted ones of so many attempts, all with a wrong password."""
    found = []
    for _ in range(count):
        try:
            found.append(await limiter.admit(account, source))
        except TooManyAttempts as error:
            assert 0 < (error.retry_after or 0) <= LIMITS.window_s
    return found


async def test_one_source_guesses_a_few_times_at_one_account(shared: Redis) -> None:
    """The bound holds over all replicas and not for other sources; the last attempt says that it is the last."""
    several = [CredentialLimiter(shared, LIMITS) for _ in range(2)]
    attempts = [*await admitted(several[0], 2), *await admitted(several[1], 2)]
    assert [attempt.is_last for attempt in attempts] == [False, False, True]
    assert await several[0].admit(ANN, OFFICE)


async def test_one_source_does_not_spray_one_password_over_all_accounts(shared: Redis) -> None:
    """Guesses at invented accounts count, too."""
    limiter = CredentialLimiter(shared, LIMITS)
    attempts = [await admitted(limiter, 1, f"user-{number}@example.com") for number in range(300)]
    assert sum(map(len, attempts)) == LIMITS.most_per_source


async def test_a_source_that_logged_in_before_gets_in(shared: Redis) -> None:
    """Neighbours may have used up the attempts of the source, and strangers those of the account."""
    limiter = CredentialLimiter(shared, LIMITS)
    await limiter.excuse(await limiter.admit(ANN, OFFICE))
    for number in range(20):
        await admitted(limiter, 1, f"invented-{number}@example.com", OFFICE)
        await admitted(limiter, 3, ANN, f"203.0.113.{number}")
    attempt = await limiter.admit(ANN, OFFICE)
    assert attempt.is_known
    with pytest.raises(TooManyAttempts):
        await limiter.admit(ANN, "198.51.100.1")
    with pytest.raises(TooManyAttempts):
        await limiter.admit("bob@example.com", OFFICE)


async def test_a_device_that_logged_in_before_gets_in_from_anywhere(shared: Redis) -> None:
    """A known device gets in through the source that guesses; its own wrong passwords are limited, too."""
    limiter = CredentialLimiter(shared, LIMITS)
    await admitted(limiter, 20)
    for number in range(10):
        await admitted(limiter, 3, ANN, f"203.0.113.{number}")
    attempts = [await limiter.admit(ANN, ATTACKER, "device-1") for _ in range(3)]
    assert all(attempt.is_known for attempt in attempts)
    with pytest.raises(TooManyAttempts):
        await limiter.admit(ANN, ATTACKER, "device-1")
    assert await limiter.admit(ANN, ATTACKER, "device-2")


async def test_many_sources_do_not_guess_many_passwords_of_one_account(shared: Redis) -> None:
    """All strangers together have so many attempts."""
    limiter = CredentialLimiter(shared, LIMITS)
    attempts = [await admitted(limiter, 3, ANN, f"203.0.113.{number}") for number in range(50)]
    assert sum(map(len, attempts)) == LIMITS.most_per_account


async def test_sources_known_to_accounts_are_bounded_together(shared: Redis) -> None:
    """Somebody who can use the address of an office does not get attempts on all accounts of the office."""
    limiter = CredentialLimiter(shared, LIMITS)
    accounts = [f"user-{number}@example.com" for number in range(20)]
    for account in accounts:
        await limiter.excuse(await limiter.admit(account, OFFICE))
    attempts = [await admitted(limiter, 1, account, OFFICE) for account in accounts]
    assert sum(map(len, attempts)) == LIMITS.most_per_source


async def test_attempts_at_the_same_time_are_charged_before_they_are_known_to_be_wrong(shared: Redis) -> None:
    """Parallel guesses gain nothing."""
    limiter = CredentialLimiter(shared, LIMITS)
    outcomes = await asyncio.gather(*(limiter.admit(ANN, ATTACKER) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(outcome, Attempt) for outcome in outcomes) == LIMITS.most_per_pair


async def test_a_right_password_costs_nothing_and_starts_anew(shared: Redis) -> None:
    """A success clears the count of its own account, and of no other."""
    limiter = CredentialLimiter(shared, LIMITS)
    for _ in range(50):
        await limiter.excuse(await limiter.admit(ANN, OFFICE))
    await admitted(limiter, 2, ANN, OFFICE)
    await limiter.excuse(await limiter.admit(ANN, OFFICE))
    assert len(await admitted(limiter, 5, ANN, OFFICE)) == 3
    sprayed = 0
    for number in range(20):
        sprayed += len(await admitted(limiter, 1, f"user-{number}@example.com"))
        await limiter.excuse(await limiter.admit("own@example.com", ATTACKER)) if number < 4 else None
    assert sprayed == LIMITS.most_per_source


async def test_an_attempt_that_was_not_compared_is_given_back(shared: Redis) -> None:
    """Giving an attempt back does not make its source known to the account."""
    limiter = CredentialLimiter(shared, LIMITS)
    for _ in range(20):
        await limiter.refund(await limiter.admit(ANN, ATTACKER))
    assert not (await limiter.admit(ANN, ATTACKER)).is_known


async def test_a_window_ends(shared: Redis) -> None:
    """Giving an attempt back after the window leaves no counter without an expiry."""
    limiter = CredentialLimiter(shared, Limits(most_per_pair=1, window_s=0.2))
    attempt = await limiter.admit(ANN, ATTACKER)
    with pytest.raises(TooManyAttempts):
        await limiter.admit(ANN, ATTACKER)
    await asyncio.sleep(0.3)
    await limiter.refund(attempt)
    assert await limiter.admit(ANN, ATTACKER)
    for key in await shared.keys("shared:credentials:*"):
        assert await shared.pttl(key) > 0, key


async def test_no_key_shows_an_address(shared: Redis) -> None:
    """Keys hold hashes of e-mail addresses."""
    limiter = CredentialLimiter(shared, LIMITS)
    await limiter.excuse(await limiter.admit(ANN, ATTACKER))
    assert not [key for key in await shared.keys("*") if "ann" in key]


async def test_new_accounts_are_counted_by_source(shared: Redis) -> None:
    """A source gets 429 beyond its bound, and other sources go on."""
    limiter = CredentialLimiter(shared, LIMITS)
    for _ in range(2):
        await limiter.admit_registration(ATTACKER)
    with pytest.raises(TooManyAttempts, match="too many new accounts from this address; retry after 60 s"):
        await limiter.admit_registration(ATTACKER)
    await limiter.admit_registration(OFFICE)


async def test_redis_away_is_unavailable() -> None:
    """Nobody is let in unseen."""
    limiter = CredentialLimiter(Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)), LIMITS)
    for action in (limiter.admit(ANN, ATTACKER), limiter.admit_registration(ATTACKER)):
        with pytest.raises(Unavailable):
            await action


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("<local>", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_source_is_an_address_or_a_network(address: str | None, counts_as: str) -> None:
    """One customer has a whole network of IPv6 addresses."""
    assert source_of(address) == counts_as
