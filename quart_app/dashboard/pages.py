"""The live page's views as HTML: whole pages, and the sections that change."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mesh.control import JourneyStep, OperationStates, percentile_ms
from mesh.dead import DeadLetter
from quart_app.dashboard import activity
from quart_app.dashboard import words as sentences
from quart_app.dashboard.activity import AnswerRow, TimelineRow
from quart_app.dashboard.assets import Assets
from quart_app.dashboard.figures import Figures, moment_of
from quart_app.dashboard.templating import template_environment
from quart_app.dashboard.words import spoken
from quart_app.panels import Act, Panel, counted, duration, shortened

OVERVIEW = "overview"
#: The views and their titles. The overview is at /mesh, each other one at /mesh/{name}.
VIEWS = {
    OVERVIEW: "Overview", "streams": "Streams", "requests": "Requests", "dead": "Dead letters", "services": "Services",
}  # fmt: skip
#: Blocks that are sent again when they change, by view. `menu` is part of every view.
CHANGING_BLOCKS = {
    OVERVIEW: ("answer", "books", "places"),
    "streams": ("answer", "table", "entries"),
    "requests": ("answer", "journey", "newest"),
    "dead": ("answer", "groups"),
    "services": ("answer", "panels", "operations", "replicas", "audit"),
}
#: The fields by which the newest answers can be chosen: operation, replica or database, status.
SEARCH_FIELDS = ("op", "to", "status")
#: The id of the element with which a block begins; the page updates the element of this id.
_ID_OF_ELEMENT = re.compile(r'<\w+[^>]*? id="([^"]+)"')
#: The most dead letters of a group that are shown, so that the page stays small. The group also says how many it has.
MOST_SHOWN_LETTERS = 20

#: Entries of a stream: the id and the fields of each.
Entries = Sequence[tuple[str, Mapping[str, str]]]


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """Dead letters with one reason, from one stream; the newest first."""

    reason: str
    stream: str
    letters: Sequence[DeadLetter]


@dataclass(frozen=True, slots=True)
class ServicesView:
    """What the view of services shows beside the replicas."""

    operations: OperationStates = field(default_factory=OperationStates)
    audit: Entries = ()
    panels: Sequence[Panel] = ()


@dataclass(frozen=True, slots=True)
class PageView:
    """Everything that one view shows at one moment."""

    name: str
    figures: Figures
    #: the name of the replica that makes the page
    replica: str
    stream_bound: int
    lease_ttl_ms: int
    #: whether the page shows the bodies of requests
    bodies: bool
    #: view of streams: the stream that the viewer chose, or the longest one, and its oldest entries
    chosen_stream: str = ""
    entries: Entries = ()
    #: view of dead letters
    groups: Sequence[ShownGroup] = ()
    #: view of requests: the reference that the viewer searches for, the lines of the timeline of its requests, the
    #: newest answers, and the texts by which these were chosen
    reference: str = ""
    timeline_rows: Sequence[TimelineRow] = ()
    answer_rows: Sequence[AnswerRow] = ()
    wanted: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(SEARCH_FIELDS, ""))
    #: overview: how many requests were answered in each of the last minutes, and the newest answers to each replica
    minutes: Sequence[float] = ()
    answers: Sequence[JourneyStep] = ()
    services: ServicesView = field(default_factory=ServicesView)
    #: all acts, by name
    acts: Mapping[str, Act] = field(default_factory=dict)
    #: whether an operator can sign in at all, and whether this viewer has signed in
    can_sign_in: bool = False
    may_act: bool = False


def group_letters(letters: Sequence[DeadLetter]) -> list[ShownGroup]:
    """Group dead letters by reason and stream, the largest group first."""
    letters_by_group: dict[tuple[str, str], list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        letters_by_group[letter.reason, letter.stream].append(letter)
    groups = [ShownGroup(reason, stream, group) for (reason, stream), group in letters_by_group.items()]
    return sorted(groups, key=lambda group: -len(group.letters))


def services_headline(services: ServicesView) -> str:
    """Return one sentence made of the services' own phrases. If there are none, return the number of operations."""
    phrases = [panel.phrase for panel in services.panels if panel.phrase]
    if not phrases:
        return counted(len(services.operations.by_name), "operation")
    sentence = "; ".join(phrases)
    return sentence[0].upper() + sentence[1:]


class Pages:
    """Renders views. Templates escape everything that they show."""

    def __init__(self, assets: Assets) -> None:
        self._environment = template_environment(assets)
        self._environment.filters |= {
            "age": duration,
            "clock": _time_of_day,
            "milliseconds": _milliseconds,
            "number": "{:,}".format,
            "rate": _rate,
            "short": shortened,
            "spoken": spoken,
            "within": _answered_within,
        }
        # `target` here is where a request went, not a part of an HTML form.
        self._environment.globals |= {
            "target": activity.target,
            "views": VIEWS,
            "moment_of": moment_of,
            "averaged": sentences.averaged,
            "services_headline": services_headline,
            "shown_letters": MOST_SHOWN_LETTERS,
        }
        # The templates get the macros as a global. They cannot import the macros: `sections` renders single blocks,
        # and then the imports of their template do not run.
        self._environment.globals["pictures"] = self._environment.get_template("macros.html").module

    def page(self, view: PageView, events_url: str) -> str:
        """Return a whole page; `events_url` is the address of its changes."""
        return self.fixed_page(view, view.name, events_url=events_url)

    def fixed_page(self, view: PageView, template: str, *, events_url: str = "", **facts: Any) -> str:
        """Return a page from the template of this name, with the menu of a view. Without `events_url` it is fixed."""
        context = {**self._template_context(view), **facts, "events": events_url}
        return self._environment.get_template(f"{template}.html").render(context)

    def sections(self, view: PageView) -> dict[str, str]:
        """Return the sections of a view that can change, by the ids of their elements.

        `events` is "" here, as on a fixed page, because only the body around the sections names the address.
        """
        template = self._environment.get_template(f"{view.name}.html")
        context = template.new_context({**self._template_context(view), "events": ""})
        base = self._environment.get_template("base.html")
        sections = {}
        for block in ("menu", *CHANGING_BLOCKS[view.name]):
            template_with_block = template if block in template.blocks else base
            html = "".join(template_with_block.blocks[block](context)).strip()
            match = _ID_OF_ELEMENT.match(html)
            assert match is not None, f"the block {block} begins with an element that has an id"
            sections[match[1]] = html
        return sections

    def _template_context(self, view: PageView) -> dict[str, Any]:
        figures = view.figures
        return {
            "view": view,
            "figures": figures,
            "words": sentences.describe(figures),
            "classes": _places_by_class(figures),
            "live": {place.member.replica for place in figures.places if place.member and place.state != "lost"},
            "waiting": sum(stream.waiting for stream in figures.streams),
        }


def _places_by_class(figures: Figures) -> list[tuple[str, list[Any]]]:
    """Return each class with those of its databases that have a roster row.

    If the only replica of a class is expected back, the class has no such database.
    """
    places_of: dict[str, list[Any]] = defaultdict(list)
    for place in figures.places:
        if place.cls:
            places_with_row = places_of[place.cls]  # so that a class without such a database is in the result, too
            if place.member is not None:
                places_with_row.append(place)
    return sorted(places_of.items())


def _time_of_day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]


def _milliseconds(microseconds: str) -> str:
    """Return in ms a time that the roster has in µs; "–" if it has none."""
    return f"{int(microseconds) / 1000:,.1f} ms" if microseconds.isdecimal() else "–"


def _answered_within(steps: Sequence[JourneyStep], percent: int) -> str:
    """Return the time within which this share of the requests was answered; "–" if it is not known."""
    time_ms = percentile_ms(steps, percent)
    return "–" if time_ms is None else f"{time_ms:,} ms"


def _rate(rate: float) -> str:
    # Below 10, whole numbers would hide most changes.
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"
