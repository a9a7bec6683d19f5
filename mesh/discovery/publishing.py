"""What this replica serves, written to Redis for people, programs and other replicas.

    mesh:operations          hash   operation -> its definition, as JSON
    mesh:operations:served   hash   digest of a table -> its operations; roster rows name the digest

When a replica joins, it writes the definitions of its operations, and overwrites those of another release. With each
sweep it writes definitions that are missing. It also removes the operations that no live replica serves, and their next
ticks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from mesh import keys
from mesh.discovery.directory import HIGHEST_LEVEL
from mesh.wire.link import Link
from mesh.wire.script import Script

#: Writes which operations a replica serves, for those who look for operations.
PUBLISH = Script.beside(__file__, "publish.lua")


class Publication:
    """The definitions of one replica's operations: name -> JSON.

    `readers` has the names of the operations without an effect, with spaces between them.
    """

    def __init__(self, definitions: Mapping[str, str], readers: str) -> None:
        self._readers = readers
        self._definitions = dict(sorted(definitions.items()))
        table_text = "\n".join(f"{op} {definition}" for op, definition in self._definitions.items())
        #: names this table of operations in roster rows; any change of a definition changes it. 12 digits (48 bits) are
        #: enough: a mesh has few tables at a time, and a longer digest would make each roster row longer
        self.digest = hashlib.sha1(table_text.encode(), usedforsecurity=False).hexdigest()[:12]

    @property
    def row(self) -> dict[str, str]:
        """Those fields of the roster row that say what this replica serves and understands."""
        return {"serves": self.digest, "reads": str(HIGHEST_LEVEL), "readers": self._readers}

    # The replica calls `publish` when it joins, and `restore` with each sweep.
    async def publish(self, link: Link) -> None:
        """Write the definitions, over those of other releases. Raises MeshError, redis-py's errors."""
        await self._run_script(link, 1, self._definitions)

    async def restore(self, link: Link) -> None:
        """Write definitions that are missing, and remove the operations that no live replica serves."""
        # Most of the time nothing is missing, so the definitions themselves are sent only when something is.
        if not await self._run_script(link, 0, {}):
            await self._run_script(link, 0, self._definitions)

    async def _run_script(self, link: Link, overwrite: int, definitions: Mapping[str, str]) -> bool:
        """Run publish.lua; return whether Redis has this table of operations and the definitions of all of them.

        `overwrite` is 1 or 0, as the script reads it. With 0 and without definitions the script only looks and removes.
        """
        words = [word for op_and_definition in definitions.items() for word in op_and_definition]
        key_names = [keys.OPERATIONS, keys.SERVED, keys.SCHEDULES]
        return bool(await link.script(PUBLISH, key_names, keys.MOST_DATABASES, self.digest, overwrite, *words))
