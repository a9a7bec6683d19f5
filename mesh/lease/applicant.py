"""A replica without a lease: it looks at all databases, chooses a free one, and grants itself the lease.

    looking --a database can be taken--> granting --done--> holding (see `mesh.lease.holding`)
       ^  |                                 |
       |  +--none: logs why, and waits      +--another replica was faster--> looking

The grant raises the epoch, and writes the lease and the roster row. If the server enforces isolation, the same
transaction replaces the Redis user of the former epoch.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh import keys
from mesh.errors import MeshError, Unavailable
from mesh.lease import acl, server
from mesh.lease.choice import KeepWaiting, Observation, SurveyRow, choose
from mesh.settings import Isolation, MeshSettings
from mesh.wire import failures
from mesh.wire.clients import Connections, Credentials
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

#: SURVEY reads what a starting replica must know of all databases. GRANT gives it the lease of one of them.
SURVEY = Script.beside(__file__, "survey.lua")
GRANT = Script.beside(__file__, "grant.lua", "written.lua")

#: A command for Redis: its name, and then its arguments.
Command = tuple[Any, ...]

#: Pause between two looks at the databases, and between two tries of a renewal that failed. A longer pause delays the
#: next try; a shorter one costs Redis more commands.
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Grant:
    """What this replica was granted: a database, with its class, under a new epoch.

    `sent_at` is when the replica sent the grant, by `time.monotonic()`; `granted_ms` is when Redis ran it, in ms of
    Redis's clock. `credentials` is None if the server does not enforce isolation.
    """

    database: int
    cls: str
    epoch: int
    replica: str
    credentials: Credentials | None
    sent_at: float
    granted_ms: int

    @property
    def holder(self) -> str:
        """What the key of the lease has as its value: "<epoch> <replica>"."""
        return f"{self.epoch} {self.replica}"


class Applicant:
    """A replica that has no lease yet. It talks to Redis as the user in the settings, which all replicas share.

    `roster_fields` are those fields of the replica's roster row that are known before the grant, such as its address.
    """

    def __init__(
        self, settings: MeshSettings, connections: Connections, replica: str, roster_fields: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._connections = connections
        self._replica = replica
        self._roster_fields = roster_fields
        #: the value that the key `mesh:claim` must have: the name of the mesh and its bus
        self._claim = f"{settings.name} {connections.bus}"
        self._reason_to_wait = ""
        #: keys that the log has named as unreadable
        self._unreadable_keys: set[str] = set()
        #: called with the reason why there is no lease yet, whenever the reason has changed
        self.on_wait: Callable[[str], None] = lambda reason: None

    async def apply(self) -> Grant:
        """Wait for a lease for as long as it takes. Raises SetupError if waiting cannot help."""
        client = self._connections.client(f"applicant-{self._replica}")
        try:
            while True:
                try:
                    return await self._apply(client)
                except (Unavailable, *failures.ANY) as error:
                    # A SetupError is not caught here: it ends `apply`. An error of redis-py or of the network becomes
                    # Unavailable if waiting may help, or else a SetupError.
                    mesh_error = error if isinstance(error, MeshError) else server.to_mesh_error(error)
                    if not isinstance(mesh_error, Unavailable):
                        raise mesh_error from error
                    self._note_wait(str(mesh_error))
                    await asyncio.sleep(2 * POLL_S)  # longer than between surveys: each attempt checks the server again
        finally:
            await client.aclose()

    def _note_wait(self, reason: str) -> None:
        """Log a new reason to wait, and call `on_wait` with it. Do nothing if the reason has not changed."""
        if reason != self._reason_to_wait:
            log.info("waiting for a lease", reason=reason)
            self._reason_to_wait = reason
            self.on_wait(reason)

    async def _apply(self, client: Redis) -> Grant:
        """Check the server once, and survey it until this replica is granted a database; return the grant.

        Raises SetupError, Unavailable, or an error of redis-py or of the network.
        """
        version = await server.check(client)
        # Which access rules (ACL) the server knows; None if only the names of keys isolate replicas.
        acl_dialect = None
        if self._settings.isolation is Isolation.ACL:
            acl_dialect = await acl.find_dialect(client, version)
        # Only a comparison of surveys shows which leases are renewed. After an error, `apply` begins a new comparison.
        observation = Observation(self._settings.lease_ttl_ms)
        while True:
            rows = await self.survey(client)
            choice = choose(rows, observation.update(rows), self._connections.bus)
            if isinstance(choice, KeepWaiting):
                self._note_wait(choice.reason)
                await asyncio.sleep(POLL_S)
                continue
            grant = await self._try_to_take(client, choice.database, acl_dialect)
            if grant is not None:
                return grant

    async def survey(self, client: Redis) -> list[SurveyRow]:
        """Return the state of every database at one moment.

        Raises SetupError if another mesh uses the server, or a newer release has written to it. Raises Unavailable if
        the key `mesh:format` has a text that is no number.
        """
        key_names = (keys.CLAIM, keys.FORMAT)
        found_claim, newest_format, raw_rows = await SURVEY.run(
            client, key_names, self._connections.bus, self._settings.databases
        )
        server.check_claim(found_claim, self._claim)
        server.check_format(newest_format, "to this mesh")
        rows = [SurveyRow(*fields) for fields in raw_rows]
        for row in rows:
            if row.unreadable_key:
                self._note_unreadable(row.unreadable_key)
            else:
                server.check_format(row.format, f"database {row.database}")
        return rows

    def _note_unreadable(self, key: str) -> None:
        if key not in self._unreadable_keys:
            log.error("database not taken: one of its keys has a text that the mesh does not write", key=key)
            self._unreadable_keys.add(key)

    async def _try_to_take(self, client: Redis, database: int, acl_dialect: acl.Dialect | None) -> Grant | None:
        """Grant this replica the database; return None if another replica was faster.

        If the server does not enforce isolation, `acl_dialect` is None, and no Redis user is made.
        """
        credentials = acl.new_credentials(database, self._connections.bus)
        sent_at = time.monotonic()
        # `Script.run` cannot run a script in a transaction. So the grant sends its source, with the number of its KEYS.
        commands: list[Command] = [
            ("EVAL", GRANT.source, 7, *self._grant_keys(database), *self._grant_arguments(database))
        ]
        if acl_dialect is not None:
            rules = acl.rules(database, self._connections.bus, credentials.password or "", acl_dialect)
            # Deleting the former user cuts its connections: the fence. It comes before the new user, of the same name.
            commands += [("ACL", "DELUSER", credentials.username), ("ACL", "SETUSER", credentials.username, *rules)]
        try:
            answers = await self._run_in_transaction(client, database, commands)
        except redis_errors.OutOfMemoryError:
            answers = await self._run_one_by_one(client, commands)
        if not answers or not answers[0]:  # the answer of grant.lua
            return None  # another replica, another mesh or a newer release came first; the next survey shows which
        epoch, cls, granted_ms = answers[0]
        return Grant(
            database=database,
            cls=cls,
            epoch=int(epoch),
            replica=self._replica,
            credentials=credentials if acl_dialect is not None else None,
            sent_at=sent_at,
            granted_ms=int(granted_ms),
        )

    @staticmethod
    async def _run_in_transaction(client: Redis, database: int, commands: list[Command]) -> list[Any]:
        """Run the commands of a grant in one transaction; return an empty list if another replica holds the database.

        The transaction watches the lease. If another replica is granted the lease meanwhile, no command runs, so this
        replica does not delete the Redis user of the new holder.
        """
        async with client.pipeline(transaction=True) as pipeline:
            await pipeline.watch(keys.lease(database))
            if await pipeline.exists(keys.lease(database)):
                return []
            pipeline.multi()
            for command in commands:
                pipeline.execute_command(*command)
            try:
                return list(await pipeline.execute())
            except redis_errors.WatchError:
                return []

    @staticmethod
    async def _run_one_by_one(client: Redis, commands: list[Command]) -> list[Any]:
        """Run the commands of a grant without a transaction, because Redis 7 allows none when its memory is full.

        The script grants only a database that is free, so only the replica that gets the database changes its Redis
        user. Between the grant and this change, the former holder can still read the database for a moment. Its commits
        are refused, because another replica holds the lease.
        """
        answers: list[Any] = []
        for command in commands:
            answers.append(await client.execute_command(*command))
            if not answers[0]:
                break  # not granted, so this replica must not change the Redis user
        return answers

    def _grant_keys(self, database: int) -> list[str]:
        """Return the seven KEYS of grant.lua, in its order."""
        return [
            keys.EPOCH, keys.lease(database), keys.row(database), keys.replies(self._replica), keys.FORMAT, keys.CLAIM,
            keys.expected(database),
        ]  # fmt: skip

    def _grant_arguments(self, database: int) -> list[str]:
        """Return the ARGV of grant.lua, in its order; the fields of the roster row come last."""
        settings = self._settings
        # A number chooses a class at random. Its bound is far above the number of classes, so all are about as likely.
        # 0 lets grant.lua choose the class that the fewest replicas have.
        random_number = random.randrange(1, 1 << 30) if settings.class_policy == "random" else 0
        arguments: list[Any] = [
            self._connections.bus,
            database,
            self._replica,
            settings.lease_ttl_ms,
            settings.classes,
            settings.class_ or "",
            random_number,
            settings.databases,
            self._claim,
            server.FORMAT,
            settings.missing_ms,
        ]
        for name, value in self._roster_fields.items():
            arguments += [name, value]
        return [str(argument) for argument in arguments]
