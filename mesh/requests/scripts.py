"""The scripts that act on requests: each does one atomic action, and has a Lua file of its own."""

from __future__ import annotations

from collections.abc import Iterable

from mesh import roster
from mesh.discovery import ASK_SERVES, PUBLISH, READ_SERVED
from mesh.groups.reader import FORGET, KEEP_ALIVE
from mesh.later import waking
from mesh.later.entering import ENTER
from mesh.later.parking import PARK
from mesh.later.retry import DEFER
from mesh.requests import filters
from mesh.wire.script import Script, Variants

#: The parts that are in every script that adds, moves or ends requests with options.
OPTIONS = ("append.lua", "options.lua", "once.lua", "limits.lua", "read_error.lua")
#: A regular expression for the text of SUBMIT, COMMIT and SWEEP that is seldom needed: their plain variants lack it.
#: Each script may have one such text only. With two, `.*` would also take all that stands between them, and
#: `Script.without` would not notice.
SELDOM_PATTERN = r"-- What few (?:batches|transactions|sweeps) need\..*-- End of what few need\.\n"
SUBMIT = Script.beside(
    __file__,
    "submit.lua",
    "batch.lua",
    "room.lua",
    "submit_seldom.lua",
    "further_fields.lua",
    *OPTIONS,
    "place.lua",
)
COMMIT = Script.beside(
    __file__,
    "commit.lua",
    "batch.lua",
    "room.lua",
    "../lease/written.lua",
    "commit_seldom.lua",
    "commit_answers.lua",
    "commit_checks.lua",
    "commit_verbs.lua",
    "further_fields.lua",
    *OPTIONS,
    "place.lua",
)
# Each of these scripts is named for its file, whose head says what it does. The further files are parts of the script.
# A part that contains another part stands before it: see `Script.beside`.
END = Script.beside(__file__, "end.lua", "expire.lua", "../later/left.lua", *OPTIONS)
REDELIVER = Script.beside(__file__, "redeliver.lua")
GIVE_BACK = Script.beside(__file__, "give_back.lua")
BURY = Script.beside(__file__, "bury.lua", *OPTIONS)
SWEEP = Script.beside(__file__, "sweep.lua", "expire.lua", *OPTIONS)
PLAIN_SWEEP = SWEEP.without(SELDOM_PATTERN)
#: Opens request streams: creates those that are missing, with their groups, and corrects the books.
OPEN = Script.beside(__file__, "open.lua", "count_by_hand.lua", "counts.lua")
MINUTE = Script.beside(__file__, "minute.lua", "count_by_hand.lua", "counts.lua")
BOOKS = Script.beside(__file__, "books.lua", "counts.lua")


def commit_with(fragments: Iterable[str]) -> Script:
    """Return the commit script with the Lua of services' verbs. A block around each keeps its locals apart.

    Each fragment is `ServiceVerbs.lua` of a service. It has to end with a line feed, because `end` follows it directly.
    """
    blocks = [f"do\n{fragment}end" for fragment in fragments]
    return Script(COMMIT.source.replace("--[[ verbs of services ]]", "\n".join(blocks)))


def variants(script: Script) -> Variants:
    """Return the variants of SUBMIT, or of a commit script. The link of a replica or a client takes them."""
    return Variants(script, script.without(SELDOM_PATTERN), when_full(script))


def when_full(script: Script) -> Script:
    """Return the variant of a script that the server runs even when its memory is full.

    The script itself then refuses the requests and transactions that would add data.
    """
    # With this first line and no flag, the server refuses a script when memory is full.
    header, assignment = "#!lua\n", "local memory_is_full = false\n"
    if not script.source.startswith(header) or script.source.count(assignment) != 1:
        raise ValueError("this script has no variant for a full memory")
    source = script.source.removeprefix(header).replace(assignment, assignment.replace("false", "true"))
    return Script(f"#!lua flags=allow-oom\n{source}")


#: The scripts that a replica's link runs beside SUBMIT and the commit. If the server does not know one of them, the
#: link loads it.
OF_LINK = (
    roster.READ_ROSTER, roster.READ_MISSING, END, KEEP_ALIVE, FORGET, REDELIVER, GIVE_BACK, BURY, SWEEP, PLAIN_SWEEP,
    OPEN, BOOKS, MINUTE, *waking.SCRIPTS, DEFER, PARK, ENTER, READ_SERVED, ASK_SERVES, PUBLISH, filters.NAME_FILTER,
)  # fmt: skip
