"""What a service shows to an operator on the live page, and what an operator can do to the service there.

A service describes facts, and the live page draws them. So the page knows no service, and no service knows HTML.

    panel(mesh) -> Panel       read once a second while somebody looks at the view of services
    acts                       see `Act`
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh import Mesh
from mesh.dead import Actor


@dataclass(frozen=True, slots=True)
class PanelFigure:
    """One figure of a panel, and a note below the figure. `bad`: the figure needs attention."""

    name: str
    value: str
    note: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class PanelItem:
    """One thing in the list of a panel, such as a job.

    The part `done` of `whole` is drawn as a bar, unless `whole` is 0. `act` names an act on the item; "": it has none.
    `bad`: the item needs attention.
    """

    id: str
    state: str
    lines: Sequence[str] = ()
    done: float = 0
    whole: float = 0
    act: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """What one service shows. `phrase` becomes a part of the page's headline, unless it is empty."""

    name: str
    title: str
    note: str = ""
    phrase: str = ""
    figures: Sequence[PanelFigure] = ()
    items: Sequence[PanelItem] = ()


#: What an act is applied to, such as the id of a request: the values of the form's fields by their names.
ActFields = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ActQuestion:
    """The question to an operator before an act: the consequence, and the fields of the form that confirms the act."""

    title: str
    consequence: str
    fields: ActFields


@dataclass(frozen=True, slots=True)
class Done:
    """What an act did: a sentence for the page, and facts for a client that wants JSON."""

    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Act:
    """One act of an operator. The view `view` of the live page has the links to it.

    The operator types `word`, such as "discard", to confirm the act; "": the button is enough, whose text is `button`.
    `ask` returns the question before the act, and `do` does the act.
    """

    name: str
    button: str
    word: str
    view: str
    ask: Callable[[Mesh, ActFields], Awaitable[ActQuestion]]
    do: Callable[[Mesh, ActFields, Actor], Awaitable[Done]]


def counted(count: int, noun: str) -> str:
    """Return a number and its noun, which is given in the singular: "1 replica", "1,204 replicas", "2 tries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def duration(milliseconds: int) -> str:
    """Return a span of time for people, in whole units; below ten seconds with one decimal."""
    seconds = milliseconds / 1000
    # Seconds, minutes and hours are used up to two of the next unit: "90 s" says more than "2 min".
    for below_s, unit, unit_s in ((1, "ms", 0.001), (120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < below_s:
            amount = seconds / unit_s
            return f"{amount:.1f} {unit}" if amount < 10 and unit == "s" else f"{amount:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def shortened(text: str, max_length: int) -> str:
    """Return a text, cut to `max_length` characters if it is longer."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def data_size(byte_count: int) -> str:
    """Return a number of bytes for people, below ten units with one decimal: "120 bytes", "3.2 MB"."""
    for unit, unit_bytes in (("MB", 10**6), ("kB", 10**3)):
        if byte_count >= unit_bytes:
            amount = byte_count / unit_bytes
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:,.0f} {unit}"
    return counted(byte_count, "byte")
