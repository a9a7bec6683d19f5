"""A Lua script, named by the hash of its source, so that two releases can run on one server at the same time.

Each script is a file beside the Python module that runs it. KEYS holds the keys that belong to the script itself. The
writes of a commit bring further keys, in two databases; the server checks each of them against the access rules of the
Redis user.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from redis.exceptions import NoScriptError


class Executor(Protocol):
    """Runs commands: a client of redis-py, or an object like one."""

    def execute_command(self, *command: Any, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Script:
    """One Lua script, by its source."""

    source: str

    @cached_property
    def sha(self) -> str:
        """The SHA-1 of the source: the name that EVALSHA takes."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def beside(cls, module: str, name: str, *parts: str) -> Script:
        """Read the file `name` in the folder of a module; pass the module's `__file__`.

        Each of `parts` is a file, named as seen from that folder; it replaces the comment that holds its name:
        `--[[ part.lua ]]`. A part may contain such a comment for a later part of its own folder.
        """
        folder = Path(module).parent
        source = (folder / name).read_text("utf-8")
        for part in parts:
            text = (folder / part).read_text("utf-8")
            for called in {part, Path(part).name}:
                source = source.replace(f"--[[ {called} ]]", text)
        return cls(source)

    def without(self, part: str) -> Script:
        """Return the script without the only piece of its source that matches a pattern. Raises ValueError."""
        source, count = re.subn(part, "", self.source, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the script has {count} pieces like {part!r}, not one")
        return Script(source)

    async def run(self, client: Executor, keys: Sequence[str], *args: Any, decode: bool = True) -> Any:
        """Run the script over a client, and load it if the server does not know it. Raises redis-py's errors.

        Without `decode` the answer stays bytes, for what may not be text.
        """
        words = (len(keys), *keys, *args)
        options = {} if decode else {"NEVER_DECODE": True}
        try:
            return await client.execute_command("EVALSHA", self.sha, *words, **options)
        except NoScriptError:
            return await client.execute_command("EVAL", self.source, *words, **options)


@dataclass(frozen=True)
class Variants:
    """One script in three: complete, `plain` for batches that need little of it, and `when_full` for a full memory.

    The server refuses the first two when its memory is full.
    """

    complete: Script
    plain: Script
    when_full: Script

    @property
    def all(self) -> tuple[Script, ...]:
        return self.complete, self.plain, self.when_full


#: A script whose batches have numbers, and the words that stand before the number.
Numbered = tuple[Variants, Sequence[Any]]
