"""Connections, transactions and migrations, on both databases."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, inspect, make_url, text
from structlog.testing import capture_logs

from mesh import SetupError, Unavailable
from quart_app.movements import database as module
from quart_app.movements.address import async_url
from quart_app.movements.database import MovementDatabase
from quart_app.movements.settings import MovementSettings
from quart_app.movements.tables import metadata
from tests.support import postgres, tls
from tests.support.movements import forked

INI = Path(module.__file__).parent / "migrations" / "alembic.ini"


def migrate(url: str) -> None:
    """Migrate a database, as a replica does at its start; for a process of its own."""
    asyncio.run(MovementDatabase.of(MovementSettings(database_url=SecretStr(url))).migrate())


class Network:
    """A proxy that can forget its connections: it then passes no data and closes nothing, as some firewalls do."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._pumps: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        for source, target in ((reader, up_writer), (up_reader, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, target)))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.close()

    def forget(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        self._pumps.clear()


async def names(database: MovementDatabase) -> set[str]:
    async with database.reading() as connection:
        return set(await connection.run_sync(lambda it: inspect(it).get_table_names()))


async def test_replicas_that_start_together_migrate_once(database_url: str) -> None:
    """Four processes start at once: one migrates, the others wait and find the tables."""
    started = [forked().Process(target=migrate, args=(database_url,)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        await asyncio.to_thread(process.join, 60)
    assert [process.exitcode for process in started] == [0] * 4
    database = MovementDatabase(async_url(database_url))
    assert await names(database) == {"alembic_version", "movements", "warehouses"}
    async with database.reading() as connection:
        assert len((await connection.execute(text("SELECT * FROM alembic_version"))).all()) == 1
    await database.close()


def test_the_latest_revision_is_the_one_that_alembic_goes_to() -> None:
    """The code reads it from a file name, so that most replicas never load Alembic."""
    config = Config()
    config.set_main_option("script_location", module.MIGRATIONS)
    assert ScriptDirectory.from_config(config).get_heads() == [module.LATEST_REVISION]


async def test_a_replica_on_migrated_tables_does_not_load_alembic(
    database: MovementDatabase, database_url: str
) -> None:
    """Most starts need no migration, and Alembic is a tenth of what a replica loads."""
    code = (
        "import asyncio, sys; from quart_app.movements.database import MovementDatabase; "
        "from quart_app.movements.settings import MovementSettings; "
        "asyncio.run(MovementDatabase.of(MovementSettings()).migrate()); print('alembic' in sys.modules)"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\n"


async def test_a_migration_that_fails_leaves_nothing_half_done(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration is one transaction, on SQLite too. The next start does all of it."""
    upgrade = module._migrate_to_latest

    def killed_at_the_end(connection: Connection) -> None:
        upgrade(connection)
        raise RuntimeError("killed")

    database = MovementDatabase(async_url(database_url))
    monkeypatch.setattr(module, "_migrate_to_latest", killed_at_the_end)
    with pytest.raises(RuntimeError, match="killed"):
        await database.migrate()
    assert await names(database) == set()
    monkeypatch.setattr(module, "_migrate_to_latest", upgrade)
    await database.migrate()
    assert "movements" in await names(database)
    await database.close()


async def test_the_tables_are_what_the_migrations_make(database: MovementDatabase) -> None:
    """The tables in the code and the migrated ones are equal."""

    def difference(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, metadata))

    async with database.reading() as connection:
        assert await connection.run_sync(difference) == []


async def test_migrations_can_be_undone(database: MovementDatabase) -> None:
    """A downgrade removes the tables, and an upgrade makes them again."""

    def downgrade(connection: Connection) -> None:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", module.MIGRATIONS)
        command.downgrade(config, "base")

    async with database.migrating() as connection:
        await connection.run_sync(downgrade)
    assert await names(database) == {"alembic_version"}
    await database.migrate()
    assert "warehouses" in await names(database)


async def test_alembic_works_from_the_command_line(database_url: str) -> None:
    """Operators run it with the same settings and under the same lock."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "alembic", "-c", str(INI), "upgrade", "head"],
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    database = MovementDatabase(async_url(database_url))
    assert "movements" in await names(database)
    await database.close()


async def test_readers_do_not_wait_for_the_writer(database: MovementDatabase) -> None:
    """Readers see what is committed."""
    async with database.writing() as writer:
        await writer.execute(
            text(
                "INSERT INTO warehouses (warehouse_id, product_id, balance, updated_at) "
                "VALUES ('00000000000000000000000000000001', '00000000000000000000000000000001', 1, CURRENT_TIMESTAMP)"
            )
        )
        async with asyncio.timeout(2), database.reading() as reader:
            assert (await reader.execute(text("SELECT count(*) FROM warehouses"))).scalar_one() == 0
    async with database.reading() as reader:
        assert (await reader.execute(text("SELECT count(*) FROM warehouses"))).scalar_one() == 1


async def test_a_lock_is_not_waited_for_for_ever(database: MovementDatabase, database_url: str) -> None:
    """After the time-out the database is unavailable, and events wait on the stream."""
    other = MovementDatabase(async_url(database_url), timeout_ms=1000)
    async with database.migrating():
        with pytest.raises(Unavailable, match="database"):
            await other.migrate()
    await other.migrate()
    await other.close()


async def test_a_long_migration_is_not_cut_short(postgres_server: str) -> None:
    """The time-out is for requests; an index on a large table takes longer."""
    await postgres.empty(postgres_server)
    database = MovementDatabase(async_url(postgres_server), timeout_ms=1000)
    async with database.migrating() as connection:
        await connection.execute(text("SELECT pg_sleep(1.5)"))
    with pytest.raises(Unavailable):
        async with database.reading() as connection:
            await connection.execute(text("SELECT pg_sleep(1.5)"))
    await database.close()


async def test_sqlite_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    """A commit reaches the disk before its event leaves the stream, and readers do not lock out the writer."""
    database = MovementDatabase(make_url(f"sqlite+aiosqlite:///{tmp_path / 'deep' / 'down' / 'movements.db'}"))
    await database.migrate()
    async with database.writing() as connection:
        found = [
            (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
    assert found == ["wal", 2, 5000]
    await database.close()


async def test_the_address_is_in_no_error_and_the_password_in_no_log() -> None:
    """Clients see errors, and operators see the log: neither sees the password, and clients do not see the address."""
    away = MovementDatabase(async_url("postgresql://mesh:secret-word@127.0.0.1:9/none"), timeout_ms=500)
    with capture_logs() as said, pytest.raises(Unavailable) as caught:
        await away.migrate()
    assert "127.0.0.1" not in str(caught.value)
    assert "127.0.0.1" in said[0]["error"]
    assert "secret-word" not in str(caught.value) + str(said) + repr(away.url)
    await away.close()


async def test_a_newer_release_has_migrated_the_database(database: MovementDatabase) -> None:
    """An older release refuses it with a sentence instead of working on tables that it does not know."""
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SetupError, match=r"at revision 9999 and this release knows revisions up to 0001.*downgrade"):
        await database.migrate()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"this is not a database" * 1000, "the file is not an SQLite database"), (None, "cannot be opened")],
)
async def test_a_file_that_cannot_be_used_is_unavailable_with_the_reason(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """The service answers 503 with this sentence and is opened again later."""
    path = tmp_path / "movements.db"
    path.mkdir() if content is None else path.write_bytes(content)
    database = MovementDatabase(make_url(f"sqlite+aiosqlite:///{path}"))
    with pytest.raises(Unavailable, match=f"the movements database cannot be used: .*{reason}"):
        await database.migrate()
    await database.close()


async def test_a_full_disk_stops_writes_and_not_reads(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands for the disk."""
    database = MovementDatabase(make_url(f"sqlite+aiosqlite:///{tmp_path / 'movements.db'}"))
    await database.migrate()
    with pytest.raises(Unavailable, match="the disk is full"):
        async with database.writing() as connection:
            pages = (await connection.execute(text("PRAGMA page_count"))).scalar_one()
            await connection.execute(text(f"PRAGMA max_page_count = {pages}"))
            await connection.execute(text("CREATE TABLE filler AS SELECT randomblob(100000) AS data"))
    assert await database.fetch(text("SELECT count(*) FROM movements")) == [(0,)]
    await database.close()


async def test_connections_that_the_network_forgot_cost_no_error(postgres_server: str) -> None:
    """Idle connections are black holes: the next caller gets its answer over a new one, within the ping's time-out."""
    url = make_url(postgres_server)
    network = Network(int(url.port or 0))
    async with await asyncio.start_server(network.serve, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        database = MovementDatabase(async_url(str(url.set(port=port))), timeout_ms=5000)
        await asyncio.gather(*(database.fetch(text("SELECT pg_sleep(0.2)")) for _ in range(3)))
        network.forget()
        async with asyncio.timeout(4):
            assert await database.fetch(text("SELECT 1")) == [(1,)]
        await database.close()


async def test_a_read_whose_connection_breaks_runs_once_more(postgres_server: str) -> None:
    """The server restarts or ends the connection; the caller sees no error. A second break is Unavailable."""
    database = MovementDatabase(async_url(postgres_server))
    end_others = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
    )
    reading = asyncio.create_task(database.fetch(text("SELECT 1, pg_sleep(1)")))
    await asyncio.sleep(0.5)
    await database.fetch(end_others)
    assert [row[0] for row in await reading] == [1]

    reading = asyncio.create_task(database.fetch(text("SELECT 1, pg_sleep(1)")))
    for _ in range(2):
        await asyncio.sleep(0.5)
        await database.fetch(end_others)
    with pytest.raises(Unavailable, match=r"ended the connection|broke"):
        await reading
    await database.close()


@tls.needed
async def test_the_options_that_managed_postgresql_hands_out_work(
    postgres_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS works by each way to ask for it; the server sees the application's name and the option."""
    monkeypatch.setenv("HOME", str(tmp_path))
    made = await tls.certificate(tmp_path)
    options = "application_name=shop&connect_timeout=5&options=-c%20statement_timeout%3D9000&channel_binding=prefer"
    with postgres.with_tls(made) as cluster:
        for security in ("sslmode=require", f"sslmode=verify-full&sslrootcert={made.path}"):
            database = MovementDatabase(async_url(f"{cluster.address}?{security}&{options}"))
            await database.migrate()
            query = (
                "SELECT ssl, current_setting('application_name'), current_setting('statement_timeout') "
                "FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            )
            assert await database.fetch(text(query)) == [(True, "shop", "9s")]
            await database.close()


async def test_tls_that_the_server_does_not_speak_is_unavailable(postgres_server: str) -> None:
    """`sslmode=require` never falls back to plain text."""
    database = MovementDatabase(async_url(f"{postgres_server}?sslmode=require"))
    with pytest.raises(Unavailable):
        await database.fetch(text("SELECT 1"))
    await database.close()
