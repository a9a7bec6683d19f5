"""Reads DATABASE_URL: which database, with which driver, and with which options.

An address is here the URL of a database.

Managed PostgreSQL services give addresses in libpq's form, with options such as `sslmode`. The driver asyncpg reads
most options. It passes an option that it does not know to the server as a setting, and then each connect fails. So this
module checks every option when the process starts, and refuses an unknown one with an error text.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

#: The drivers we use, by the dialect that an address names.
DRIVERS = {"postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}

#: Options that asyncpg reads by itself.
ASYNCPG_OPTIONS = {
    "host", "port", "user", "password", "dbname", "database", "passfile", "service", "sslmode", "sslcert", "sslkey",
    "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version",
    "target_session_attrs", "krbsrvname", "gsslib",
}  # fmt: skip
#: Options that asyncpg hands to the server, which knows them.
SERVER_OPTIONS = {
    "application_name", "options", "search_path", "statement_timeout", "lock_timeout", "TimeZone", "timezone",
    "idle_in_transaction_session_timeout",
}  # fmt: skip
#: Options of libpq that change nothing here if they have one of these values. `None` means any value.
IGNORED_OPTIONS = {
    "channel_binding": {"prefer", "disable"},
    "gssencmode": {"prefer", "disable"},
    "client_encoding": {"utf8", "UTF8", "utf-8", "UTF-8", "auto"},
    "load_balance_hosts": {"disable"},
    "sslcompression": {"0"},
    "sslsni": {"1"},
    # Keepalives are not needed: a ping finds a broken connection before the connection is used.
    "keepalives": None, "keepalives_idle": None, "keepalives_interval": None, "keepalives_count": None,
    "tcp_user_timeout": None,
}  # fmt: skip
#: Options that are known to this module only: `read_connect_timeout_s` and `_check_and_clean_postgresql` read them.
OUR_OPTIONS = {"connect_timeout", "fallback_application_name"}
SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
#: Options that name a file which must exist.
FILE_OPTIONS = {"sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile"}


def async_url(url_text: str) -> URL:
    """Return the address with our driver and without the options that change nothing.

    Raises ValueError; its text does not contain the password.
    """
    try:
        url = make_url(url_text)
    except (ArgumentError, ValueError):
        raise ValueError(_why_unreadable(url_text)) from None
    driver = DRIVERS.get(url.drivername.partition("+")[0])
    if driver is None:
        raise ValueError(f"DATABASE_URL begins with {url.drivername}; it must begin with postgresql or sqlite")
    if driver == DRIVERS["sqlite"]:
        _check_sqlite(url)
    else:
        url = _check_and_clean_postgresql(url)
    return url.set(drivername=driver)


def dsn_of(url: URL) -> str:
    """Return a PostgreSQL address as asyncpg reads it. asyncpg would send `connect_timeout` to the server."""
    for_asyncpg = url.difference_update_query(["connect_timeout"])
    return for_asyncpg.set(drivername="postgresql").render_as_string(hide_password=False)


def read_connect_timeout_s(url: URL, default_s: float) -> float:
    """Return how long a connect may take: the option `connect_timeout`, or the default where it is missing or 0."""
    return float(_last_value(url, "connect_timeout") or 0) or default_s


def _why_unreadable(url_text: str) -> str:
    if "," in url_text.partition("?")[0]:
        return "DATABASE_URL names several hosts; write them as options: ?host=one,two&port=5432,5433"
    return "DATABASE_URL cannot be read; write postgresql://user:password@host:port/database or sqlite:///path"


def _check_sqlite(url: URL) -> None:
    if url.database in {None, "", ":memory:"}:
        raise ValueError("DATABASE_URL must name a file: replicas cannot share a database in memory")
    if url.query:
        raise ValueError(f"DATABASE_URL has the option {min(url.query)}; an SQLite address has no options here")


def _check_and_clean_postgresql(url: URL) -> URL:
    for name in url.query:
        _check_option(name, _last_value(url, name))
    if "application_name" not in url.query and (fallback_name := _last_value(url, "fallback_application_name")):
        url = url.update_query_dict({"application_name": fallback_name})
    return url.difference_update_query([*IGNORED_OPTIONS, "fallback_application_name"])


def _check_option(name: str, value: str) -> None:
    """Raise ValueError for an option of DATABASE_URL that is unknown, or has a wrong value."""
    if name in IGNORED_OPTIONS:
        harmless_values = IGNORED_OPTIONS[name]
        if harmless_values is not None and value not in harmless_values:
            raise ValueError(f"DATABASE_URL asks for {name}={value}, which the driver asyncpg cannot do; remove it")
    elif name not in ASYNCPG_OPTIONS | SERVER_OPTIONS | OUR_OPTIONS:
        raise ValueError(
            f"DATABASE_URL has the unknown option {name}; remove it, or set a parameter of the server with "
            "options=-c%20name%3Dvalue"
        )
    if name == "sslmode" and value not in SSL_MODES:
        raise ValueError(f"DATABASE_URL has sslmode={value}; it must be one of {', '.join(sorted(SSL_MODES))}")
    if name == "connect_timeout" and not (value.isascii() and value.isdecimal()):
        raise ValueError("DATABASE_URL has a connect_timeout that is not a number of seconds")
    if name in FILE_OPTIONS and not Path(value).is_file():
        raise ValueError(f"DATABASE_URL names a file for {name} that does not exist")


def _last_value(url: URL, name: str) -> str:
    """Return the value of an option, or "" without it. The last of several values counts."""
    # SQLAlchemy returns a tuple for an option that the address has several times.
    value = url.query.get(name, "")
    return value if isinstance(value, str) else value[-1]
