"""The figures in sentences: one headline, one summary, and one note for each thing that needs attention.

Pure functions, so that every sentence has a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quart_app.dashboard.figures import MOST_DEAD_READ, Figures, StreamFigures
from quart_app.panels import counted, duration, shortened

#: A stream with waiting requests may get a note if its oldest entry is older than this. With a lower number, short
#: delays get notes, too; with a higher one, a long delay is seen later.
OLD_REQUEST_MS = 1000
#: Seconds over which the rates of the summary are averaged; `Figures.rates` has one for each second. Over a longer time
#: a change shows later; over a shorter one the numbers jump.
AVERAGED_S = 5


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that needs attention: `what` it is, and a `text` about it. `bad`: the mesh cannot do something now.

    `view` is the view that shows more of it; "": none. `key` is the note's id on the page, the same while the
    thing lasts.
    """

    key: str
    what: str
    text: str
    view: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """The sentences of the overview."""

    headline: str
    summary: str
    notes: Sequence[Note]
    #: the number of accepted requests, less the sum of all other counts in the books; 0 when the books balance
    difference: int


def describe(figures: Figures) -> Words:
    """Return the sentences about these figures; the notes of what does not work come first."""
    difference = figures.books["accepted"] - sum(count for name, count in figures.books.items() if name != "accepted")
    notes = [*_about_classes(figures), *_about_places(figures), *_about_books(difference), *_about_streams(figures)]
    notes += [*_about_paused(figures), *_about_dead_letters(figures), *_about_versions(figures)]
    notes.sort(key=lambda note: not note.bad)
    return Words(_headline(notes), _summary(figures), notes, difference)


def _headline(notes: Sequence[Note]) -> str:
    if not notes:
        return "All is well."
    if any(note.bad for note in notes):
        return "Something is wrong."
    return f"Working, with {counted(len(notes), 'thing')} to look at."


def _summary(figures: Figures) -> str:
    """Return the first sentences of the live page: how many replicas are ready, and how much they answer."""
    ready_count = sum(place.state == "ready" for place in figures.places)
    verb = "holds" if ready_count == 1 else "hold"
    answered_rate = averaged(figures.rates.get("answered", ()))
    rate_text = f"{answered_rate:,.0f} requests are answered per second" if answered_rate >= 1 else "No requests arrive"
    waiting_count = sum(stream.waiting for stream in figures.streams)
    waiting_text = (
        f"{counted(waiting_count, 'request')} wait{'s' if waiting_count == 1 else ''}"
        if waiting_count
        else "nothing waits"
    )
    return (
        f"{counted(ready_count, 'replica')} {verb} {ready_count} of {len(figures.places)} databases. "
        f"{rate_text}; {waiting_text}."
    )


def _about_classes(figures: Figures) -> Iterator[Note]:
    ready_classes = {place.cls for place in figures.places if place.state == "ready"}
    for cls in sorted({place.cls for place in figures.places if place.cls} - ready_classes):
        text = "has no ready replica: requests to it wait or are refused until one is ready."
        yield Note(f"class-{cls}", f"Class {cls}", text, bad=True)


def _about_places(figures: Figures) -> Iterator[Note]:
    """Yield a note for each database that needs attention."""
    for place in figures.places:
        database, replica = f"Database {place.database}", place.member.replica if place.member else ""
        match place.state:
            case "lost":
                text = f"The lease of {replica} ended without a release. A successor takes over its work."
                yield Note(f"place-{place.database}", database, text, bad=True)
            case "left":
                text = f"{replica} has left in order. Its requests wait for a successor."
                yield Note(f"place-{place.database}", database, text)
            case "missing" if place.missing:
                fact = f"{'holds data and ' if place.missing.has_data else ''}has no replica: its lease has ended."
                outlook = "Reads leave it out and say so."
                if place.missing.cls:
                    outlook = f"The replica of class {place.missing.cls} is expected back; requests get 503 meanwhile."
                yield Note(f"place-{place.database}", database, f"{fact} {outlook}", bad=True)
            case "draining":
                text = f"{replica} is draining: it finishes {counted(place.in_hand, 'request')} and takes no new ones."
                yield Note(f"place-{place.database}", database, text)
            case "starting":
                yield Note(f"place-{place.database}", database, f"{replica} is starting its services.")
            case "ready" if place.member and place.member.not_ready:
                services = ", ".join(place.member.not_ready)
                text = f"{replica} works without {services}. GET /readyz of the replica gives the reason."
                yield Note(f"place-{place.database}", database, text, bad=True)


def _about_books(difference: int) -> Iterator[Note]:
    # `difference` is that of `Words`. Above 0, more requests were accepted than the other counts have.
    if difference:
        text = f"{abs(difference):,} more {'were accepted than are accounted for' if difference > 0 else MORE_ENDED}."
        yield Note("books", "The books do not balance", text, bad=True)


#: The end of the sentence about the books if more requests ended than were accepted.
MORE_ENDED = "ended than were accepted. Entries that are written to a stream by hand have this effect"


def _about_streams(figures: Figures) -> Iterator[Note]:
    old_streams = [stream for stream in figures.streams if stream.waiting and (stream.oldest_ms or 0) > OLD_REQUEST_MS]
    if old_streams:
        oldest = max(old_streams, key=lambda stream: stream.oldest_ms or 0)
        text = f"Its oldest request is {duration(oldest.oldest_ms or 0)} old; {oldest.waiting:,} waiting"
        yield Note("old", f"Stream {spoken(oldest)}", f"{text}, {oldest.pending:,} in hand.", "streams")


def _about_paused(figures: Figures) -> Iterator[Note]:
    """Yield a note about the paused operations, if there are any."""
    if figures.paused:
        newest = max(figures.paused, key=lambda operation: operation.since_ms)
        # At most 120 characters of the names, so that the note stays short.
        names = shortened(", ".join(operation.op for operation in figures.paused), 120)
        ago = duration(max(0, figures.at_ms - newest.since_ms))
        text = f"{names}. Calls are refused with 503; last paused {ago} ago by {newest.actor}."
        yield Note("paused", f"{counted(len(figures.paused), 'operation')} paused", text, "services")


def _about_dead_letters(figures: Figures) -> Iterator[Note]:
    found_count = len(figures.recent_dead)
    if found_count:
        reason, _ = Counter(letter.reason for letter in figures.recent_dead).most_common(1)[0]
        letters_phrase = (
            f"{found_count} or more dead letters"
            if found_count >= MOST_DEAD_READ
            else counted(found_count, "dead letter")
        )
        # At most 120 characters of the reason, so that the note stays short.
        yield Note("dead", letters_phrase, f"in the last hour. Most frequent reason: {shortened(reason, 120)}", "dead")


def _about_versions(figures: Figures) -> Iterator[Note]:
    versions = sorted({place.member.version for place in figures.places if place.member and place.state == "ready"})
    if len(versions) > 1:
        yield Note("versions", "Versions", f"Replicas of {' and '.join(versions)} run side by side.")


def spoken(stream: StreamFigures) -> str:
    """Return a stream's name for people: "class A", "database 3"."""
    return f"database {stream.name[2:]}" if stream.name.startswith("db") else f"class {stream.name}"


def averaged(rates: Sequence[float]) -> float:
    """Return the average of the last seconds; 0 when nothing is known."""
    last_rates = rates[-AVERAGED_S:]
    return sum(last_rates) / len(last_rates) if last_rates else 0.0
