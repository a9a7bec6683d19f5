"""The database of the movements: connections, transactions and migrations, on PostgreSQL or in an SQLite file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Executable, event, inspect, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh import SetupError
from quart_app.movements.address import dsn_of, read_connect_timeout_s
from quart_app.movements.failures import is_lost_connection, translated_database_errors
from quart_app.movements.settings import MOST_ROWS, MovementSettings

#: The folder of the migrations, as Alembic names it.
MIGRATIONS = "quart_app.movements:migrations"
#: The revisions that this release knows: each is in a file "m<revision>_<what it does>.py", and has four digits.
REVISIONS = sorted(path.stem[1:5] for path in (Path(__file__).parent / "migrations" / "versions").glob("m*.py"))
LATEST_REVISION = REVISIONS[-1]
#: The number of the PostgreSQL lock that a process holds while it migrates (the letters "move" in ASCII). Never change
#: it: all releases must use it.
MIGRATION_LOCK_NUMBER = 0x6D6F7665
#: Connections of one process: one for the batch that is being written, the others for reads. With more, more reads run
#: at once, and the replicas together take more of the server's connections.
POOL_SIZE = 5
#: Longest wait, in seconds, for the answer to a ping. A pooled connection is pinged before it is used, because the
#: network may have dropped it while it was idle. With a longer wait, the caller learns later that the connection is
#: dead. With a shorter wait, the connection to a slow server counts as dead.
PING_TIMEOUT_S = 1.0


class MovementDatabase:
    """One database. The methods promise the same for PostgreSQL and SQLite.

    `timeout_ms` bounds each wait for a connection or a lock, and in PostgreSQL also for a statement.
    """

    def __init__(self, url: URL, *, timeout_ms: int = 5000) -> None:
        self.url = url
        self._timeout_s = timeout_ms / 1000
        self._engine = _create_engine(url, self._timeout_s, command_timeout_s=self._timeout_s)
        #: shares the connections of `_engine`; `_begin_sqlite` reads the option
        self._writing_engine = self._engine.execution_options(writing=True)

    @classmethod
    def of(cls, settings: MovementSettings) -> MovementDatabase:
        return cls(settings.url, timeout_ms=settings.database_timeout_ms)

    @property
    def dialect(self) -> str:
        """`postgresql` or `sqlite`."""
        return self._engine.dialect.name

    async def fetch(self, statement: Executable) -> Sequence[Any]:
        """Run a statement that only reads and return its rows. Raises Unavailable.

        If the connection breaks meanwhile, the statement runs once more over a new connection.
        """
        with translated_database_errors():
            try:
                return await self._fetch_once(statement)
            except DBAPIError as error:
                if not is_lost_connection(error):
                    raise
            return await self._fetch_once(statement)

    async def _fetch_once(self, statement: Executable) -> Sequence[Any]:
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).all()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads. Unlike `fetch`, it repeats nothing. Raises Unavailable."""
        with translated_database_errors():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that writes. It commits at the end and rolls back after an error. Raises Unavailable."""
        with translated_database_errors():
            async with self._writing_engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """Open the transaction of a migration. Only one process has it at a time. Its statements have no time limit.

        Raises Unavailable, also if another process keeps its transaction for longer than the time-out.
        """
        engine = _create_engine(self.url, self._timeout_s, command_timeout_s=None)
        try:
            with translated_database_errors():
                async with engine.execution_options(writing=True).begin() as connection:
                    if self.dialect == "postgresql":
                        await _take_migration_lock(connection, self._timeout_s)
                    yield connection
        finally:
            await engine.dispose()

    async def migrate(self) -> None:
        """Migrate the tables to the latest revision. If several replicas start, the first one does all of the work.

        Raises Unavailable. Raises SetupError if a newer release has migrated the database, or if the folder of the
        SQLite file cannot be made.
        """
        if self.dialect == "sqlite":
            _create_folder(Path(str(self.url.database)).parent)
        async with self.migrating() as connection:
            await connection.run_sync(_migrate_to_latest)

    async def close(self) -> None:
        """Close all connections. The next use opens new ones."""
        await self._engine.dispose()


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"the folder of the movements database cannot be made: {error}") from error


async def _take_migration_lock(connection: AsyncConnection, timeout_s: float) -> None:
    """Wait for PostgreSQL's migration lock. In SQLite, the start of each transaction that writes waits for a lock."""
    await connection.execute(text(f"SET LOCAL lock_timeout = {round(timeout_s * 1000)}"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK_NUMBER})


def _migrate_to_latest(connection: Connection) -> None:
    """Migrate the database to the latest revision. Raises SetupError if a later release has migrated it."""
    revision = _recorded_revision(connection)
    if revision == LATEST_REVISION:
        return
    if revision is not None and revision not in REVISIONS:
        raise SetupError(
            f"the movements database is at revision {revision} and this release knows revisions up to "
            f"{LATEST_REVISION}; start the release that migrated the database, or run with that release: alembic "
            f"downgrade {LATEST_REVISION}"
        )
    # Imported only here: most starts do not migrate, and Alembic takes 0.14 s and 10 MB.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", MIGRATIONS)
    command.upgrade(config, "head")


def _recorded_revision(connection: Connection) -> str | None:
    """Return the revision that Alembic has recorded in the database, or None for a new database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _create_engine(url: URL, timeout_s: float, *, command_timeout_s: float | None) -> AsyncEngine:
    """Return an engine that waits at most `timeout_s` for a connection and for an SQLite lock.

    `command_timeout_s` bounds the wait for an answer of PostgreSQL.
    """
    # Without overflow, POOL_SIZE is the maximum number of connections of this process.
    options: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": timeout_s}
    # A batch must be one INSERT. A transaction with two would keep the rows of the first one locked, and wait for rows
    # of another replica's transaction. If that one waits for this one, both are stuck.
    options["insertmanyvalues_page_size"] = MOST_ROWS
    if url.get_backend_name() == "postgresql":
        connect_args = {
            "dsn": dsn_of(url),
            "timeout": read_connect_timeout_s(url, timeout_s),
            "command_timeout": command_timeout_s,
        }
        # The server is named in `dsn`, so the URL here names only the driver.
        engine = create_async_engine("postgresql+asyncpg://", connect_args=connect_args, **options)
        event.listen(engine.sync_engine, "checkout", _check_connection)
        return engine
    engine = create_async_engine(url, connect_args={"timeout": timeout_s}, **options)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _check_connection(connection: Any, record: Any, proxy: Any) -> None:
    """Ping a pooled connection before it is used. Replace all pooled connections if no answer comes in PING_TIMEOUT_S.

    SQLAlchemy calls this, and repeats the checkout after InvalidatePoolError. `record` and `proxy` are not used.
    SQLAlchemy's own ping would wait for the whole command time-out, and the caller would get the error.
    """
    try:
        connection.run_async(_ping)
    except Exception as error:
        connection.driver_connection.terminate()  # without a farewell, which would wait for the server
        raise InvalidatePoolError from error


async def _ping(connection: Any) -> None:
    async with asyncio.timeout(PING_TIMEOUT_S):
        await connection.fetchrow(";")  # an empty statement


def _prepare_sqlite(connection: Any, record: Any) -> None:
    """Set up a new connection to SQLite. `record` is SQLAlchemy's, and is not used."""
    # SQLAlchemy calls this for each new connection. With None the driver begins no transaction; `_begin_sqlite` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    # With a write-ahead log, readers and the writer do not wait for each other.
    cursor.execute("PRAGMA journal_mode = WAL")
    # An event is removed from its stream after the commit, so the commit must survive a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction. A transaction that writes locks the database at once.

    If it read first and took the lock later, SQLite could refuse the lock.
    """
    is_writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
