"""One limit on guessing passwords, for every route that takes a password, shared by all replicas.

An attempt is admitted before its password is hashed and compared, so a refused attempt costs no hash. An admitted
attempt is charged to counters in Redis, each of which lives for a window of time. If the password was right, the
attempt is excused: the charge is taken back. Who tries decides which of the counters below are charged:

    a device that once logged in (a signed cookie)                    pair
    a source that registered the account or logged in (it is known)   pair, known-source
    anybody else (a stranger)                                         pair, source, account

A source is the address of a client, or the network of its IPv6 address. An origin is a source or a device.

So one source cannot try one password on many accounts, and many sources cannot try many passwords on one account.
Neither attack locks the owner out: strangers never use up the attempts of a known device or source.

    shared:credentials:known:{account}:{source}     string, PX   this source logged in to this account
    shared:credentials:source:{source}              counter, PX  attempts on accounts that do not know the source
    shared:credentials:known-source:{source}        counter, PX  attempts on accounts that know the source
    shared:credentials:pair:{account}:{origin}      counter, PX  attempts on one account from one source or device
    shared:credentials:account:{account}            counter, PX  attempts of strangers on one account
    shared:credentials:registrations:{source}       counter, PX  new accounts

PX: the key expires. Both `source` and `known-source` have the bound `Limits.most_per_source`. A key names an account by
a hash, so that no key shows an e-mail address.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh import Busy, MeshError, Script, Unavailable, failures

#: The scripts that admit an attempt, and that take its charge back (for `excuse` and for `refund`).
ADMIT = Script.beside(__file__, "admit.lua")
EXCUSE = Script.beside(__file__, "excuse.lua")

#: IPv6 addresses with this many first bits in common are one source. A household or an office has such a network.
IPV6_PREFIX_BITS = 64
#: How long an account knows a source after a login from there. With a longer time, an address that somebody else uses
#: now stays known, and may guess beyond the bound for strangers. With a shorter time, an owner who rarely logs in
#: counts as a stranger.
KNOWN_MS = 30 * 86_400_000
#: The number, among the keys of the scripts (`_keys`, from 1 on), of the counter `account`. Only strangers use it.
_ACCOUNT_KEY_NUMBER = 5


class TooManyAttempts(Busy):
    """Too many wrong passwords or new accounts; wait."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most attempts within one window (this is no limit of the glossary). Successful attempts do not count."""

    #: of one source or one device on one account
    most_per_pair: int = 10
    #: how long each counter lives after its first attempt
    window_s: float = 300
    #: of one source on all accounts that know it, and also on all that do not know it. A source may be an office behind
    #: one address, or an attacker who tries many accounts
    most_per_source: int = 50
    #: of all strangers together on one account. 100 in 300 s are 28,800 guesses a day; a good password needs millions
    most_per_account: int = 100
    #: new accounts of one source; each costs a hash and stays in Redis
    most_registrations: int = 200


@dataclass(frozen=True, slots=True)
class Attempt:
    """An admitted attempt."""

    #: the keys of the scripts, and the numbers (from 1 on) of those among them whose counters were charged
    keys: tuple[str, ...]
    charged_key_numbers: tuple[int, ...]
    #: whether it was the last attempt that a counter allows in its window: if it fails, the next ones are refused
    is_last: bool

    @property
    def is_known(self) -> bool:
        """Whether it comes from a device or a source that logged in to this account before."""
        return _ACCOUNT_KEY_NUMBER not in self.charged_key_numbers


class CredentialLimiter:
    """Admits attempts to use a password. Raises Unavailable when Redis does not answer."""

    def __init__(self, redis: Redis, limits: Limits) -> None:
        self._redis = redis
        self._limits = limits

    async def admit(self, account: str, address: str | None, device_id: str | None = None) -> Attempt:
        """Admit one attempt on an account, or raise TooManyAttempts.

        `account` is an e-mail address in normal form ("" for an invalid one), or for Basic authentication the name of a
        login. Callers make the normal form (`normal_email`). `device_id` is the id of a device that the account
        knows; a cookie has proved it. None: no cookie did. `address` is the network address of the client.
        """
        limits, keys = self._limits, _keys(account, source_of(address), device_id)
        arguments = [
            round(limits.window_s * 1000),
            limits.most_per_source,
            limits.most_per_pair,
            limits.most_per_account,
            int(device_id is not None),
        ]
        try:
            wait_ms, is_last, *key_numbers = await ADMIT.run(self._redis, keys, *arguments)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        if wait_ms:
            raise _too_many_attempts("too many wrong passwords", int(wait_ms))
        return Attempt(keys, tuple(int(number) for number in key_numbers), bool(is_last))

    async def excuse(self, attempt: Attempt) -> None:
        """Take back what an attempt was charged and remember its source, because its password was right."""
        await self._take_charge_back(attempt, KNOWN_MS)

    async def refund(self, attempt: Attempt) -> None:
        """Take back what an attempt was charged, because its password was never compared."""
        await self._take_charge_back(attempt, 0)

    async def admit_registration(self, address: str | None) -> None:
        """Count an attempt to register from the source of this address. Raises TooManyAttempts."""
        key = f"shared:credentials:registrations:{source_of(address)}"
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.incr(key)
                # A window begins with its first registration, and later ones do not make it longer.
                pipeline.pexpire(key, round(self._limits.window_s * 1000), nx=True)
                pipeline.pttl(key)
                registration_count, _, window_left_ms = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        if registration_count > self._limits.most_registrations:
            raise _too_many_attempts("too many new accounts from this address", window_left_ms)

    async def remember(self, account: str, address: str | None) -> None:
        """Make the source of an address known to an account, such as the source of a registration."""
        try:
            # The first key is `known`. Only its existence counts.
            await self._redis.set(_keys(account, source_of(address), None)[0], "1", px=KNOWN_MS)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def _take_charge_back(self, attempt: Attempt, known_ms: int) -> None:
        """Take the charge back. If `known_ms` is not 0, the account knows the source for this time."""
        try:
            await EXCUSE.run(self._redis, attempt.keys, known_ms, *attempt.charged_key_numbers)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error


def source_of(address: str | None) -> str:
    """Return the source that an address belongs to: the address itself, or the network of an IPv6 address.

    All requests whose address is None or no IP address share the source "unknown", and so its counters.
    """
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ipaddress.ip_network((ip, IPV6_PREFIX_BITS), strict=False))
        ip = ip.ipv4_mapped
    return str(ip)


def fingerprint(account: str) -> str:
    """Return a name for an account that does not show its address, for keys and the audit log.

    The name has 128 bits of the hash: a shorter one saves memory of Redis, but two accounts might have the same name.
    """
    return hashlib.sha256(account.encode()).hexdigest()[:32]


def _keys(account: str, source: str, device_id: str | None) -> tuple[str, ...]:
    """Return the keys of both scripts, in the order in which the scripts name them."""
    account_hash = fingerprint(account)
    origin = source if device_id is None else f"device-{device_id}"
    return (
        f"shared:credentials:known:{account_hash}:{source}",
        f"shared:credentials:source:{source}",
        f"shared:credentials:known-source:{source}",
        f"shared:credentials:pair:{account_hash}:{origin}",
        f"shared:credentials:account:{account_hash}",
    )


def _too_many_attempts(cause: str, wait_ms: int) -> TooManyAttempts:
    """Return the error 429, with a wait in whole seconds."""
    retry_s = max(1, math.ceil(wait_ms / 1000))
    return TooManyAttempts(f"{cause}; retry after {retry_s} s", retry_after=retry_s, status=429)


def _unavailable(error: Exception) -> MeshError:
    """Return the error for a login that cannot be checked: Busy while Redis is full, and Unavailable otherwise."""
    if isinstance(busy := failures.translate(error), Busy):
        return busy
    return Unavailable(f"logins cannot be checked, Redis does not answer ({type(error).__name__}); try again")
