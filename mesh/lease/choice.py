"""Which database a starting replica takes. Pure: it decides from what a survey found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One database as a survey finds it.

    `lease` is "<epoch> <replica>" or empty, `pttl` what is left of it in ms, `cls` the database's class or empty,
    `size` its number of keys, `state` the holder's state in the roster, `format` the newest format written there.
    """

    database: int
    lease: str
    pttl: int
    cls: str
    size: int
    state: str
    format: int = 0

    @property
    def free(self) -> bool:
        """Whether no replica holds it."""
        return not self.lease

    def foreign(self, bus: int) -> bool:
        """Whether it holds keys and none of them is the mesh's."""
        return not self.cls and self.size > 0 and self.database != bus


@dataclass(frozen=True, slots=True)
class Take:
    """Take this database."""

    database: int


@dataclass(frozen=True, slots=True)
class KeepWaiting:
    """Take none yet, for this reason."""

    reason: str


def choose(rows: Sequence[Row], alive: set[int], bus: int) -> Take | KeepWaiting:
    """Decide which database to take.

    First choice is a free database that has a class, because its data become readable again. An unused one comes
    second (from 1 up, the bus last), and only when every leased database is known to be alive. Otherwise a replica
    that was restarted could take a new database and leave its former one without a holder. `alive` are the databases
    whose leases were seen being renewed.
    """
    free = sorted(
        (row for row in rows if row.free and not row.foreign(bus)),
        key=lambda row: (not row.cls, row.database == bus, row.database),
    )
    if free and free[0].cls:
        return Take(free[0].database)
    doubtful = [row.database for row in rows if not row.free and row.database not in alive]
    if free and doubtful:
        return KeepWaiting(
            f"database {doubtful[0]} may become free: its lease has not been renewed since we started to look"
        )
    if free:
        return Take(free[0].database)
    foreign = [row.database for row in rows if row.foreign(bus)]
    if foreign and len(foreign) == sum(row.free for row in rows):
        return KeepWaiting(
            f"the only free databases ({', '.join(map(str, foreign))}) hold keys that are not the mesh's; "
            "empty one of them, or set MESH_DATABASES"
        )
    return KeepWaiting(f"all {len(rows)} databases are leased")


class Observation:
    """Remembers surveys and tells which leases are alive: renewed or granted since the first survey.

    How much is left of a lease proves nothing: a replica can be killed and started again within a tenth of its ttl.
    """

    def __init__(self, ttl_ms: int) -> None:
        self._ttl_ms = ttl_ms
        self._seen: dict[int, Row] = {}
        self._alive: dict[int, str] = {}

    def update(self, rows: Sequence[Row]) -> set[int]:
        """Note one more survey and return the databases whose leases are alive."""
        for row in rows:
            before = self._seen.get(row.database)
            granted = before is not None and before.lease != row.lease
            renewed = before is not None and before.lease == row.lease and row.pttl > before.pttl
            if row.lease and row.state != "draining" and (renewed or granted):
                self._alive[row.database] = row.lease
            elif self._alive.get(row.database) != row.lease or row.state == "draining" or self._overdue(row):
                self._alive.pop(row.database, None)
            self._seen[row.database] = row
        return set(self._alive)

    def _overdue(self, row: Row) -> bool:
        # Six renewals fit in a ttl. A holder that missed one may have died since the last survey.
        return row.pttl < self._ttl_ms * 3 // 4
