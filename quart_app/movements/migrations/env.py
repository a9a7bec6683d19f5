"""Alembic's environment: Alembic runs this file for a command that uses the database.

The application passes a connection that holds the migration lock. The command line passes none, so this file opens one
from the settings, under the same lock.
"""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from quart_app.movements.database import MovementDatabase
from quart_app.movements.settings import MovementSettings
from quart_app.movements.tables import metadata


def run_migrations(connection: Connection) -> None:
    # One transaction for everything, on SQLite too: a migration that fails or is killed changes nothing.
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_from_the_command_line() -> None:
    database = MovementDatabase.of(MovementSettings())
    try:
        async with database.migrating() as connection:
            await connection.run_sync(run_migrations)
    finally:
        await database.close()


if (connection := context.config.attributes.get("connection")) is not None:
    run_migrations(connection)
else:
    asyncio.run(migrate_from_the_command_line())
