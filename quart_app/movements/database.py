"""The database: connections, transactions, migrations, and what its errors mean."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import URL, Connection, event, inspect, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh import SetupError, Unavailable
from quart_app.movements.settings import MOST_ROWS, MovementSettings

log = structlog.get_logger(__name__)

MIGRATIONS = "quart_app.movements:migrations"
#: The latest of them: each stands in a file "m<revision>_<what it does>.py".
LATEST = max(path.stem[1:5] for path in (Path(__file__).parent / "migrations" / "versions").glob("m*.py"))
#: Names the lock under which one process migrates a PostgreSQL database. Any number, as long as it stays.
MIGRATION_LOCK = 0x6D6F7665
#: One batch writes at a time; the rest is for reads.
POOL_SIZE = 5


class Database:
    """One database, PostgreSQL or an SQLite file; the same promises on both."""

    def __init__(self, url: URL, *, timeout_ms: int = 5000) -> None:
        self.url = url
        self._timeout_s = timeout_ms / 1000
        self._engine = _engine(url, self._timeout_s, command_timeout_s=self._timeout_s)
        self._writer = self._engine.execution_options(writing=True)

    @classmethod
    def of(cls, settings: MovementSettings) -> Database:
        return cls(settings.url, timeout_ms=settings.database_timeout_ms)

    @property
    def dialect(self) -> str:
        """postgresql or sqlite."""
        return self._engine.dialect.name

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads. Raises Unavailable."""
        with translated():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes; committed at the end, undone by an error. Raises Unavailable."""
        with translated():
            async with self._writer.begin() as connection:
                yield connection

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only one process has at a time, and whose statements may take long.

        It ends with the process, however that ends. Raises Unavailable, also while another has it.
        """
        engine = _engine(self.url, self._timeout_s, command_timeout_s=None)
        try:
            with translated():
                async with engine.execution_options(writing=True).begin() as connection:
                    if self.dialect == "postgresql":
                        await _lock(connection, self._timeout_s)
                    yield connection
        finally:
            await engine.dispose()

    async def migrate(self) -> None:
        """Bring the tables up to date; whoever comes first does it. Raises Unavailable, SetupError."""
        if self.dialect == "sqlite":
            _make_folder(Path(str(self.url.database)).parent)
        async with self.migrating() as connection:
            await connection.run_sync(_upgrade)

    async def close(self) -> None:
        await self._engine.dispose()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"no folder for the database can be made: {error}") from error


async def _lock(connection: AsyncConnection, timeout_s: float) -> None:
    """Wait for PostgreSQL's migration lock, as SQLite waits for its own by itself. Raises DBAPIError."""
    await connection.execute(text(f"SET LOCAL lock_timeout = {round(timeout_s * 1000)}"))
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})


def _upgrade(connection: Connection) -> None:
    if _revision(connection) == LATEST:
        return
    # Only whoever migrates needs Alembic, which takes 0.14 s and 10 MB.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", MIGRATIONS)
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    """What the tables are at, as Alembic has written it down."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _engine(url: URL, timeout_s: float, *, command_timeout_s: float | None) -> AsyncEngine:
    """Every wait for the database has a deadline: for a connection, an SQLite lock, PostgreSQL's answer."""
    options: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": timeout_s}
    # A batch is one statement: split in two, its second half would wait for rows while holding the first half's stocks.
    options["insertmanyvalues_page_size"] = MOST_ROWS
    if url.get_backend_name() == "postgresql":
        waits = {"timeout": timeout_s, "command_timeout": command_timeout_s}
        return create_async_engine(url, connect_args=waits, pool_pre_ping=True, **options)
    engine = create_async_engine(url, connect_args={"timeout": timeout_s}, **options)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver's own idea of when to begin is switched off: see _begin_sqlite.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Readers and the writer do not wait for each other.
    cursor.execute("PRAGMA journal_mode = WAL")
    # An event is deleted from its stream after the commit, so the commit must survive a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes its place in the queue at once. One that began as a reader could not wait for it."""
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def translated() -> Iterator[None]:
    """Raise Unavailable for what is the database's fault, and let pass what is the data's."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        if is_fault_of_data(error):
            raise
        # Where the database is and what it says is for the log; the error may travel to a stranger.
        log.warning("the database cannot be used", error=_told(error))
        raise Unavailable("the database cannot be used just now", retry_after=1) from error


def is_fault_of_data(error: BaseException) -> bool:
    """Whether the same data would fail again on a healthy database."""
    if isinstance(error, IntegrityError | DataError):
        return True
    # asyncpg's errors come without their class; their SQLSTATE has it: 22 data, 23 constraint.
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return state is not None and state[:2] in {"22", "23"}


def _told(error: BaseException) -> str:
    """The driver's sentence, without our statement and its data."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:200]
