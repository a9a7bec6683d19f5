"""What an operator can do on the live page: look at the consequence, confirm it, and read what was done.

    GET  /mesh/sign-in          Basic authentication: user `operator`, password PAGE_PASSWORD
    GET  /mesh/confirm/{act}    what the act would do, and the form that does it
    POST /mesh/acts/{act}       does it; a form gets a page, JSON gets JSON

Every act is one script or a series of scripts, which also add an entry to `mesh:audit`. Without PAGE_PASSWORD the page
shows no buttons, and every POST is refused: hidden buttons would protect nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from pydantic import TypeAdapter
from quart import Request

from mesh import Mesh, Refused
from mesh.control import Control, read_definitions
from mesh.dead import Actor, ChosenLetters, DeadLetters, LetterGroup, Report
from quart_app.http.body import read_json
from quart_app.http.problems import Problem
from quart_app.panels import Act, ActFields, ActQuestion, Done, counted, shortened
from quart_app.security.audit import Audit
from quart_app.security.basic import BasicAuth
from quart_app.security.credentials import CredentialLimiter, Limits
from quart_app.security.csrf import is_foreign
from quart_app.settings import AppSettings

#: The user name with which an operator logs in on the live page.
OPERATOR = "operator"
#: The most characters of a reason or a name in a question. Both may be very long, and a question must stay readable.
MOST_CHARACTERS = 200

#: The body of a POST with JSON: the same fields as those of a form, but a value may be a list.
_JSON_FIELDS: TypeAdapter[dict[str, str | list[str]]] = TypeAdapter(dict[str, str | list[str]])


class OperatorCheck:
    """Checks whether a request may act: only the user `operator` may, with PAGE_PASSWORD.

    Guesses at the password are limited, and requests that pages of other sites make are refused.
    """

    def __init__(self, settings: AppSettings) -> None:
        #: whether PAGE_PASSWORD is set; without it nobody can sign in or act
        self.has_password = bool(settings.page_password.get_secret_value())
        self._auth = BasicAuth("page", OPERATOR, settings.page_password)
        #: The membership whose Redis clients `_auth` uses to limit guesses and to write the audit log. After a lost
        #: lease the next membership has other clients.
        self._auth_membership: Mesh | None = None

    async def is_signed_in(self, request: Request, replica: Mesh) -> bool:
        """Return whether a request has the operator's credentials. Raises Problem if it has wrong ones."""
        if not self.has_password or request.authorization is None:
            return False
        await self.actor_of(request, replica)
        return True

    async def actor_of(self, request: Request, replica: Mesh) -> Actor:
        """Return who acts, always the operator. For anybody else, raises Problem (401, 403) or TooManyAttempts."""
        if is_foreign(request.method, request.headers, frozenset()):  # no other site is allowed
            raise Problem(403, "this request was made by a page of another site")
        if not self.has_password:
            raise Problem(403, "this page is read-only; set PAGE_PASSWORD to act on it")
        if self._auth_membership is not replica:
            self._auth.open(CredentialLimiter(replica.shared, Limits()), Audit(replica.shared))
            self._auth_membership = replica
        await self._auth.check(request)
        return Actor(OPERATOR, request.remote_addr or "")


async def read_fields(request: Request) -> ActFields:
    """Return the fields of a POST: those of a form, or of a JSON object of texts and lists of texts.

    A list becomes one text with spaces between its elements, as `_chosen_letters` reads the field `ids`.
    """
    if request.mimetype == "application/x-www-form-urlencoded":
        return (await request.form).to_dict()
    fields = await read_json(_JSON_FIELDS)
    return {name: value if isinstance(value, str) else " ".join(value) for name, value in fields.items()}


def find_act(name: str, acts: Mapping[str, Act]) -> Act:
    """Return an act by its name. Raises Problem if there is none of this name."""
    if name not in acts:
        # 50 characters: more than the name of any act has.
        raise Problem(404, f"there is no act {shortened(name, 50)!r}; there are {', '.join(acts)}")
    return acts[name]


# Acts on dead letters


def _dead_letters(replica: Mesh) -> DeadLetters:
    # A replay stops when a stream has as many requests as `stream_bound` allows.
    return DeadLetters(replica.shared, replica.settings.stream_bound)


async def _chosen_letters(replica: Mesh, fields: ActFields) -> ChosenLetters:
    """Return the ids in the field `ids`, or the group of the letter that the field `like` names. Raises Refused.

    A group is all letters with one reason from one stream. `like` has the id of the newest letter of the group.
    """
    if not fields.get("like"):
        if not (ids := fields.get("ids", "").split()):
            raise Refused("name letters by their ids, or a group of them by `like`")
        return ids
    # An act on a group goes from the oldest letter to the newest. So if the newest one does not exist any more, such an
    # act has already handled the whole group. Then the present act gets this one id, and its report says that the
    # letter was gone. It says the same, and leaves the rest of the group, if an act has handled this one by its id.
    return await _dead_letters(replica).group_like(fields["like"]) or [fields["like"]]


async def _describe_chosen(replica: Mesh, fields: ActFields) -> tuple[str, str, str]:
    """Return how many letters were chosen ("3 dead letters"), their stream, and a phrase with their reason.

    Only a group has one stream and one reason. If letters were named by their ids, stream and phrase are "".
    """
    chosen = await _chosen_letters(replica, fields)
    if not isinstance(chosen, LetterGroup):
        return counted(len(chosen), "dead letter"), "", ""
    count = await _dead_letters(replica).count(chosen)
    reason_phrase = f" with the reason “{shortened(chosen.reason, MOST_CHARACTERS)}”"
    return counted(count, "dead letter"), chosen.stream, reason_phrase


async def _ask_replay(replica: Mesh, fields: ActFields) -> ActQuestion:
    """Return the question that the page asks before it replays the chosen letters."""
    letters_phrase, stream, reason_phrase = await _describe_chosen(replica, fields)
    target = f"to {stream}" if stream else "to the streams that they came from"
    return ActQuestion(
        f"Replay {letters_phrase}?",
        f"{letters_phrase}{reason_phrase} will go back {target}. Each is worked on once more, now and without a "
        "deadline; nobody waits for the answers. What fails again becomes a dead letter again.",
        fields,
    )


async def _replay(replica: Mesh, fields: ActFields, actor: Actor) -> Done:
    return _done_with_letters(
        "replayed", await _dead_letters(replica).replay(await _chosen_letters(replica, fields), actor)
    )


async def _ask_discard(replica: Mesh, fields: ActFields) -> ActQuestion:
    """Return the question that the page asks before it discards the chosen letters."""
    letters_phrase, stream, reason_phrase = await _describe_chosen(replica, fields)
    return ActQuestion(
        f"Discard {letters_phrase}?",
        f"{letters_phrase}{f' of {stream}' if stream else ''}{reason_phrase} will be deleted with everything in them. "
        "This cannot be undone.",
        fields,
    )


async def _discard(replica: Mesh, fields: ActFields, actor: Actor) -> Done:
    return _done_with_letters(
        "discarded", await _dead_letters(replica).discard(await _chosen_letters(replica, fields), actor)
    )


def _done_with_letters(participle: str, report: Report) -> Done:
    """Return what an act on dead letters did, as a sentence and with the fields of the report as facts."""
    parts = [f"{report.done:,} {participle}"]
    if report.gone:
        parts.append(f"{report.gone:,} {'was' if report.gone == 1 else 'were'} gone already")
    why_stopped = f" It stopped: {report.problem}." if report.problem else ""
    return Done(f"{', '.join(parts)}.{why_stopped}", asdict(report))


# Acts on operations, requests and replicas. A replica learns of a pause, of its end and of a drain when it renews its
# lease. By default it does so every half second, so the answers below say "within a second".


def _control(replica: Mesh) -> Control:
    return Control(replica.shared, replica.settings)


async def _ask_pause(replica: Mesh, fields: ActFields) -> ActQuestion:
    """Return the question that the page asks before it pauses an operation."""
    op = fields.get("op", "")
    warning = (
        "" if op in await read_definitions(replica.shared) else " No replica serves an operation of this name now."
    )
    return ActQuestion(
        f"Pause {shortened(op, MOST_CHARACTERS)}?",
        "Until you resume it, every replica refuses its calls with 503. A request that no caller waits for is parked "
        f"until then if it was sent to a class. If it was sent to a database, it still runs.{warning}",
        fields,
    )


async def _pause(replica: Mesh, fields: ActFields, actor: Actor) -> Done:
    changed = await _control(replica).pause(fields.get("op", ""), actor)
    text = "It is paused within a second." if changed else "It was paused before."
    return Done(text, {"changed": changed})


async def _ask_resume(replica: Mesh, fields: ActFields) -> ActQuestion:
    op = fields.get("op", "")
    return ActQuestion(f"Resume {shortened(op, MOST_CHARACTERS)}?", "Replicas will work on it again.", fields)


async def _resume(replica: Mesh, fields: ActFields, actor: Actor) -> Done:
    changed = await _control(replica).resume(fields.get("op", ""), actor)
    return Done("It goes on within a second." if changed else "It was not paused.", {"changed": changed})


async def _ask_cancel(replica: Mesh, fields: ActFields) -> ActQuestion:
    return ActQuestion(
        f"Cancel the request {shortened(fields.get('id', ''), MOST_CHARACTERS)}?",
        "It will have no effect, and its caller gets an error. If a replica works on it, the replica stops this work.",
        fields,
    )


async def _cancel(replica: Mesh, fields: ActFields, actor: Actor) -> Done:
    """Cancel a request. `Control.cancel` returns its stream and its operation, which may be empty."""
    stream_and_op = await _control(replica).cancel(fields.get("id", ""), actor)
    if stream_and_op is None:
        return Done("No stream has this request: it has ended already, or it never was there.", {"changed": False})
    return Done(f"Cancelled {stream_and_op[1] or 'a request'} on {stream_and_op[0]}.", {"changed": True})


async def _ask_drain(replica: Mesh, fields: ActFields) -> ActQuestion:
    """Return the question that the page asks before it drains a replica."""
    # `replica` is the one that answers this request. The field `replica` has the name of the one to drain.
    replica_to_drain = fields.get("replica", "")
    # The row of a replica stays after its lease until the row expires, so `leased` is asked, too.
    ready_members = [member for member in await replica.roster() if member.leased and member.state == "ready"]
    cls = next((member.cls for member in ready_members if member.replica == replica_to_drain), "")
    others_count = sum(member.cls == cls for member in ready_members) - 1  # not used if `cls` is ""
    consequence = f"{counted(others_count, 'replica')} of class {cls} will be left."
    if not cls:
        consequence = "No ready replica has this name now."
    elif not others_count:
        consequence = (
            f"It is the last replica of class {cls}: requests to this class wait or are refused until one is ready."
        )
    return ActQuestion(
        f"Drain {shortened(replica_to_drain, MOST_CHARACTERS)}?",
        f"It finishes what it works on, gives its database back and ends its process. {consequence}",
        fields,
    )


async def _drain(replica: Mesh, fields: ActFields, actor: Actor) -> Done:
    changed = await _control(replica).drain(fields.get("replica", ""), actor)
    text = "It begins to drain within a second." if changed else "No such replica is live, or it leaves already."
    return Done(text, {"changed": changed})


#: The acts on the mesh itself, by name. `LivePage` adds those of the services (`Service.acts`). The four texts of each
#: act are its name, the text of the button, the word that the operator must type ("": none), and the view with the
#: links to the act. The pages of the act have links back to this view. The view of services lists the replicas, too.
ACTS = {
    act.name: act
    for act in (
        Act("replay", "Replay", "", "dead", _ask_replay, _replay),
        Act("discard", "Discard", "discard", "dead", _ask_discard, _discard),
        Act("pause", "Pause", "", "services", _ask_pause, _pause),
        Act("resume", "Resume", "", "services", _ask_resume, _resume),
        Act("cancel", "Cancel the request", "", "requests", _ask_cancel, _cancel),
        Act("drain", "Drain", "drain", "services", _ask_drain, _drain),
    )
}


async def ask_before(act: Act, replica: Mesh, fields: ActFields) -> ActQuestion:
    """Return the question for the operator. Raises Problem if `ask` refuses the act."""
    with _problem_for_refusal():
        return await act.ask(replica, fields)


async def carry_out(act: Act, replica: Mesh, fields: ActFields, actor: Actor) -> Done:
    """Carry an act out. Raises Problem if the act is refused, or if the word that confirms it was not typed."""
    if act.word and fields.get("word", "").strip().lower() != act.word:
        raise Problem(422, f"type the word {act.word!r} to confirm it; nothing was done")
    with _problem_for_refusal():
        return await act.do(replica, fields, actor)


@contextlib.contextmanager
def _problem_for_refusal() -> Iterator[None]:
    """Turn the refusal of an act into a 422 for its caller."""
    try:
        yield
    except Refused as error:
        raise Problem(422, error.detail) from error
