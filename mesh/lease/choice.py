"""Which database a starting replica takes. These are pure functions of what surveys of all databases found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh import keys


@dataclass(frozen=True, slots=True)
class SurveyRow:
    """One database as a survey found it; not a row of the roster.

    `lease` is "<epoch> <replica>", or empty if no replica holds the database; `remaining_ms` is the remaining time of
    the lease. `cls` is the database's class, or empty if it never had one. `state` is the holder's state in the roster.
    `format` is the text of the key that says in which format of data the holders write there.
    """

    database: int
    lease: str
    remaining_ms: int
    cls: str
    key_count: int
    state: str
    format: str = ""

    @property
    def is_free(self) -> bool:
        """Whether no replica holds the database."""
        return not self.lease

    @property
    def unreadable_key(self) -> str:
        """The key, class or format, whose text the mesh never writes: somebody has changed it. "" if both are valid."""
        if self.cls not in {"", *keys.CLASSES}:
            return f"{keys.own(self.database)}class"
        return "" if self.format.isdecimal() or not self.format else f"{keys.own(self.database)}format"

    def is_foreign(self, bus: int) -> bool:
        """Whether another program uses the database: it has keys, but no class. The bus never counts as foreign."""
        return not self.cls and self.key_count > 0 and self.database != bus


@dataclass(frozen=True, slots=True)
class Take:
    """Take this database."""

    database: int


@dataclass(frozen=True, slots=True)
class KeepWaiting:
    """Take no database yet, for this reason."""

    reason: str


def choose(rows: Sequence[SurveyRow], renewed_databases: set[int], bus: int) -> Take | KeepWaiting:
    """Decide which database to take. `renewed_databases` are those whose leases were seen to be granted or renewed.

    A free database that has a class comes first, because its data become readable again. A database that was never used
    comes second: the lowest number first, the bus last. The replica takes an unused database only if all leased ones
    are in `renewed_databases`. The holder of any other lease may be dead, such as the former process of this replica.
    So the replica waits for that database, which would otherwise stay without a holder.
    """
    free_rows = sorted(
        (row for row in rows if row.is_free and not row.is_foreign(bus) and not row.unreadable_key),
        key=lambda row: (not row.cls, row.database == bus, row.database),
    )  # in the order of preference
    if free_rows and free_rows[0].cls:
        return Take(free_rows[0].database)
    doubtful_databases = [row.database for row in rows if not row.is_free and row.database not in renewed_databases]
    if free_rows and doubtful_databases:
        return KeepWaiting(
            f"database {doubtful_databases[0]} may become free: its lease has not been renewed since we started to look"
        )
    if free_rows:
        return Take(free_rows[0].database)
    if unreadable_keys := [row.unreadable_key for row in rows if row.is_free and row.unreadable_key]:
        return KeepWaiting(
            f"no database is free, except some whose keys have a text that the mesh does not write: "
            f"{', '.join(unreadable_keys)}; restore these keys, or delete them"
        )
    foreign_databases = [row.database for row in rows if row.is_foreign(bus)]
    # Emptying a foreign database is the way out only if all free databases are foreign.
    if foreign_databases and len(foreign_databases) == sum(row.is_free for row in rows):
        return KeepWaiting(
            f"the only free databases ({', '.join(map(str, foreign_databases))}) hold keys that are not the mesh's; "
            "empty one of them, or set MESH_DATABASES"
        )
    return KeepWaiting(f"all {len(rows)} databases are leased")


class Observation:
    """Compares surveys, and tells which leases were granted or renewed after the first survey.

    One survey is not enough: a lease with nearly its whole ttl left can still have a dead holder. A replica can be
    killed and started again within a tenth of the ttl.
    """

    def __init__(self, ttl_ms: int) -> None:
        self._ttl_ms = ttl_ms
        #: database -> its row in the survey before
        self._last_rows: dict[int, SurveyRow] = {}
        #: database -> the lease that was seen to be granted or renewed
        self._renewed_leases: dict[int, str] = {}

    def update(self, rows: Sequence[SurveyRow]) -> set[int]:
        """Note one more survey; return the databases whose present leases were seen to be granted or renewed."""
        for row in rows:
            last_row = self._last_rows.get(row.database)
            was_granted = last_row is not None and last_row.lease != row.lease
            was_renewed = (
                last_row is not None and last_row.lease == row.lease and row.remaining_ms > last_row.remaining_ms
            )
            # A holder that drains leaves soon, so its database counts as one that may become free.
            if row.lease and row.state != "draining" and (was_renewed or was_granted):
                self._renewed_leases[row.database] = row.lease
            elif (
                self._renewed_leases.get(row.database) != row.lease
                or row.state == "draining"
                or self._has_missed_renewal(row)
            ):
                self._renewed_leases.pop(row.database, None)
            self._last_rows[row.database] = row
        return set(self._renewed_leases)

    def _has_missed_renewal(self, row: SurveyRow) -> bool:
        # The holder may have died since the last survey. A holder renews six times in a ttl, so less than five sixths
        # of the ttl remain only after a missed renewal. Three quarters allow for a late one.
        return row.remaining_ms < self._ttl_ms * 3 // 4
