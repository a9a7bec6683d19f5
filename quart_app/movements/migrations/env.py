"""What Alembic runs. The application hands over a connection that holds the migration lock; the command line opens
the same one from the settings."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from quart_app.movements.database import Database
from quart_app.movements.settings import MovementSettings
from quart_app.movements.tables import metadata


def migrate(connection: Connection) -> None:
    # One transaction for all of it, on SQLite too: a migration that fails or is killed leaves nothing half done.
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_from_the_command_line() -> None:
    database = Database.of(MovementSettings())
    try:
        async with database.migrating() as connection:
            await connection.run_sync(migrate)
    finally:
        await database.close()


if (connection := context.config.attributes.get("connection")) is not None:
    migrate(connection)
else:
    asyncio.run(migrate_from_the_command_line())
