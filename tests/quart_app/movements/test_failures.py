"""The reasons that clients and operators read when the database cannot be used."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from mesh import Unavailable
from quart_app.movements.failures import is_fault_of_data, reason_for, translated_database_errors


def of_sqlite(name: str) -> DBAPIError:
    original = sqlite3.OperationalError("said by SQLite")
    original.sqlite_errorname = name
    return OperationalError("INSERT …", {}, original)


def of_postgresql(state: str) -> DBAPIError:
    original = Exception("said by PostgreSQL")
    original.sqlstate = state  # type: ignore[attr-defined]
    return DBAPIError("INSERT …", {}, original)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (of_sqlite("SQLITE_FULL"), "the disk is full"),
        (of_sqlite("SQLITE_CORRUPT_VTAB"), "the database file is damaged"),
        (of_sqlite("SQLITE_IOERR_WRITE"), "the disk reports an error"),
        (of_sqlite("SQLITE_READONLY_DBMOVED"), "cannot be written"),
        (of_sqlite("SQLITE_SOMETHING"), "SQLite reports an error"),
        (of_postgresql("53100"), "the disk of the database is full"),
        (of_postgresql("28P01"), "refuses the user or the password"),
        (of_postgresql("3D000"), "does not exist"),
        (of_postgresql("08006"), "the connection to the database broke"),
        (of_postgresql("57P01"), "the database ended the connection"),
        (of_postgresql("57P03"), "starting or stopping"),
        (of_postgresql("57014"), "cancelled the statement"),
        (of_postgresql("XX000"), "PostgreSQL reports the error XX000"),
        (ConnectionRefusedError("10.0.0.7"), "it cannot be reached"),
        (TimeoutError(), "it did not answer in time"),
        (PoolTimeout("pool"), "it does not answer as expected"),
    ],
)
def test_each_kind_of_failure_has_its_reason(error: Exception, text: str) -> None:
    """The reason names no address; the error becomes Unavailable."""
    assert text in reason_for(error) and "10.0.0.7" not in reason_for(error)
    with pytest.raises(Unavailable, match=text) as caught, translated_database_errors():
        raise error
    assert caught.value.retry_after == 1


@pytest.mark.parametrize(
    "error", [of_postgresql("22003"), of_postgresql("23505"), IntegrityError("INSERT …", {}, Exception())]
)
def test_an_error_of_the_data_passes(error: DBAPIError) -> None:
    """The error would occur again on a healthy database, so the event is to blame."""
    assert is_fault_of_data(error)
    with pytest.raises(DBAPIError), translated_database_errors():
        raise error
