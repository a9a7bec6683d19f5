"""Tells what an error of the database means: either the data are wrong, or the database cannot be used, and why.

The database is here the SQL database of the movements: PostgreSQL or an SQLite file, not a database of Redis.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from mesh import Unavailable

log = structlog.get_logger(__name__)

#: Reasons by SQLite's name of the error, and by the SQLSTATE of PostgreSQL or its first two characters.
REASONS = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_CORRUPT": "the database file is damaged",
    "SQLITE_NOTADB": "the file is not an SQLite database",
    "SQLITE_READONLY": "the database file cannot be written",
    "SQLITE_CANTOPEN": "the database file cannot be opened",
    "SQLITE_IOERR": "the disk reports an error",
    "SQLITE_BUSY": "another process keeps the database locked",
    "53100": "the disk of the database is full",
    "53300": "the database has no connection left",
    "28": "the database refuses the user or the password",
    "3D": "the database does not exist",
    "55P03": "another process keeps the database locked",
    "57P03": "the database is starting or stopping",
    "57014": "the database cancelled the statement, perhaps because it took too long",
    "25006": "the database is read-only",
    "42501": "the user of the database lacks a right",
    "08": "the connection to the database broke",
    "57": "the database ended the connection",
}
#: After how many seconds a client may try again. A longer time would keep clients away after the database is back; with
#: a shorter one, more of them would try in vain before.
RETRY_AFTER_S = 1


@contextmanager
def translated_database_errors() -> Iterator[None]:
    """Raise Unavailable for an error of the database itself. An error that comes from wrong data is left unchanged."""
    try:
        yield
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        if is_fault_of_data(error):
            raise
        # The error may reach a client, so only the log says where the database is and what it answered.
        log.warning("database cannot be used", error=_driver_text(error))
        raise Unavailable(
            f"the movements database cannot be used: {reason_for(error)}", retry_after=RETRY_AFTER_S
        ) from error


def is_fault_of_data(error: BaseException) -> bool:
    """Return whether the same data would fail again on a healthy database."""
    if isinstance(error, IntegrityError | DataError):
        return True
    # Errors of asyncpg come here with a general class. Their SQLSTATE still says what they are: it begins with 22 for
    # wrong data and with 23 for a violated constraint.
    return _sqlstate(error)[:2] in {"22", "23"}


def reason_for(error: BaseException) -> str:
    """Return why the database cannot be used, without an address or a name."""
    original = _original(error)
    if isinstance(original, sqlite3.Error):
        # An extended name begins with the plain name: SQLITE_IOERR_WRITE is a kind of SQLITE_IOERR.
        name = getattr(original, "sqlite_errorname", "")
        return next(
            (text for error_name, text in REASONS.items() if name.startswith(error_name)), "SQLite reports an error"
        )
    sqlstate = _sqlstate(error)
    if sqlstate:
        return REASONS.get(sqlstate) or REASONS.get(sqlstate[:2]) or f"PostgreSQL reports the error {sqlstate}"
    if isinstance(original, TimeoutError):
        return "it did not answer in time"
    return "it cannot be reached" if isinstance(original, OSError) else "it does not answer as expected"


def is_lost_connection(error: BaseException) -> bool:
    """Return whether the connection broke during a statement. The statement may succeed over a new connection.

    Only `MovementDatabase.fetch` asks this, and it repeats a statement that only reads. A transaction that writes is
    not repeated, because its COMMIT may have taken effect. Its events stay in their stream and are delivered again;
    those that are stored already are then counted as duplicates.
    """
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _original(error: BaseException) -> BaseException:
    """Return the driver's error that SQLAlchemy has wrapped, or the error itself."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _sqlstate(error: BaseException) -> str:
    """Return PostgreSQL's code of an error: five characters, or "" if it has none."""
    return str(getattr(_original(error), "sqlstate", None) or "")


def _driver_text(error: BaseException) -> str:
    """Return the first line of the driver's own text, cut to 200 characters, without our statement and its data."""
    original = _original(error)
    return f"{type(original).__name__}: {original}".splitlines()[0][:200]
