"""A Lua script, named by the hash of its source, so that two releases can run on one server at the same time.

Each script is a file beside the Python module that runs it. KEYS has the keys that the script itself uses. One kind of
script uses further keys: the writes of a commit name keys in the leased database and in the bus. The server checks each
of these keys against the access rules of the Redis user.
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
    """The source of one Lua script."""

    source: str

    @cached_property
    def sha(self) -> str:
        """The SHA-1 of the source: the name that EVALSHA takes."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def beside(cls, module: str, name: str, *parts: str) -> Script:
        """Read the file `name` in the folder of a module; pass the module's `__file__`.

        Each of `parts` is the path of a file, seen from that folder. The text of the file replaces the comment that
        names it: `--[[ part.lua ]]`. A part can itself contain such comments for later parts. If a later part is in
        another folder than the script, its comment may name the file alone.
        """
        folder = Path(module).parent
        source = (folder / name).read_text("utf-8")
        for part in parts:
            text = (folder / part).read_text("utf-8")
            for name_in_comment in {part, Path(part).name}:
                source = source.replace(f"--[[ {name_in_comment} ]]", text)
        return cls(source)

    def without(self, pattern: str) -> Script:
        """Return the script without the one text that matches a pattern. Raises ValueError unless just one matches.

        The plain variants of scripts are made so: see `SELDOM_PATTERN` in requests/scripts.py.
        """
        source, count = re.subn(pattern, "", self.source, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the script has {count} pieces like {pattern!r}, not one")
        return Script(source)

    async def run(self, client: Executor, keys: Sequence[str], *args: Any, decode: bool = True) -> Any:
        """Run the script over a client, and load it if the server does not know it. Raises redis-py's errors.

        Without `decode` the texts in the reply are bytes, because they may not be UTF-8.
        """
        keys_and_arguments = (len(keys), *keys, *args)
        options = {} if decode else {"NEVER_DECODE": True}
        try:
            return await client.execute_command("EVALSHA", self.sha, *keys_and_arguments, **options)
        except NoScriptError:
            # EVAL also loads the script, so the next EVALSHA succeeds.
            return await client.execute_command("EVAL", self.source, *keys_and_arguments, **options)


@dataclass(frozen=True)
class Variants:
    """Three variants of one script. Each batch runs one of them.

    `complete` can run every batch. `plain` lacks the parts that few batches need, and is faster. `when_full` is for a
    server whose memory is full: that server refuses the other two.
    """

    complete: Script
    plain: Script
    when_full: Script

    @property
    def all(self) -> tuple[Script, ...]:
        return self.complete, self.plain, self.when_full


#: How a link runs the batches of one kind: the variants of the script, and its first arguments. The number of the batch
#: and the batch itself come after them.
BatchScript = tuple[Variants, Sequence[Any]]
