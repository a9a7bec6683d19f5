"""Refuses to start with a secret that everybody knows, when others can reach the replica.

The defaults are good enough to try the project on one machine. If HOST is not a loopback address, others can reach the
replica. Then each secret that is in use must be set, and must not be a default or a common password.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr

from mesh import RedisSettings, SetupError
from quart_app.security.guessable import is_guessable


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can be reached from this machine only. Other names are not looked up."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_known(host: str, name: str, secret: SecretStr | None) -> None:
    """Raise SetupError if others reach this replica at `host` and its secret `name` is empty or well known."""
    if is_loopback(host) or (secret is not None and not is_guessable(secret.get_secret_value())):
        return
    state = "not set" if secret is None or not secret.get_secret_value() else "a well-known one"
    raise SetupError(
        f"{name} is {state}, and others reach this replica (HOST={host}); set {name} to a random secret, "
        f"for instance the output of: openssl rand -hex 24"
    )


def refuse_open_redis(host: str, settings: RedisSettings) -> None:
    """Raise SetupError if this replica would use a Redis of another machine without a password, or with a known one."""
    url = urlsplit(settings.url.get_secret_value() if settings.url is not None else "")
    redis_hosts = [host_name for host_name, _ in settings.sentinel_addresses] or [url.hostname or settings.host]
    # With a client certificate, Redis knows the replica without a password.
    if all(map(is_loopback, redis_hosts)) or "ssl_certfile" in parse_qs(url.query):
        return
    password = settings.password
    if settings.url is not None:
        password = SecretStr(unquote(url.password)) if url.password else None
    refuse_known(host, "REDIS_PASSWORD" if settings.url is None else "the password in REDIS_URL", password)
