"""Which database a starting replica takes, as a table; what it says where none can be had."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
import redis

from mesh import (
    IsolationUnavailable,
    MeshSettings,
    RedisSettings,
    ServerTooOld,
    SetupError,
    Worker,
    WrongCredentials,
    join,
)
from mesh.lease.lease import Applicant, Observation, Row, Take, Wait, choose
from quart_app.local import supervisor
from tests.support.fakes import FakeClient, FakeConnections
from tests.support.members import Members, mesh_settings
from tests.support.server import Server
from tests.support.waiting import eventually

BUS = 0
TTL_MS = 3000


def unused(database: int) -> Row:
    return Row(database, "", -2, "", 0, "")


def had(database: int, cls: str = "A") -> Row:
    """Free, and has a class: somebody's data live there."""
    return Row(database, "", -2, cls, 5, "")


def held(database: int, state: str = "ready", pttl: int = TTL_MS) -> Row:
    return Row(database, f"{database + 100} replica-{database}", pttl, "A", 5, state)


def foreign(database: int) -> Row:
    return Row(database, "", -2, "", 7, "")


@pytest.mark.parametrize(
    ("rows", "alive", "expected"),
    [
        pytest.param([unused(0), unused(1), unused(2)], set(), 1, id="unused ones from 1 up"),
        pytest.param([unused(0), held(1), unused(2)], {1}, 2, id="the next unused one"),
        pytest.param([unused(0), unused(1), had(2)], set(), 2, id="one with data before an unused one"),
        pytest.param([had(0), had(1)], set(), 1, id="the bus's database last, also of those with data"),
        pytest.param([had(0), unused(1)], set(), 0, id="its data live again before an unused one is begun"),
        pytest.param([unused(0), held(1), held(2)], {1, 2}, 0, id="the bus's when all others are leased"),
        pytest.param([unused(0), foreign(1), unused(2)], set(), 2, id="never one with somebody else's keys"),
        pytest.param([foreign(0), held(1)], {1}, 0, id="the bus's own keys are no stranger's"),
        pytest.param([unused(0), held(1), had(2)], set(), 2, id="one with data although a holder is in doubt"),
    ],
)
def test_which_database_is_taken(rows: list[Row], alive: set[int], expected: int) -> None:
    """One that has a class first, then from 1 up, the bus last."""
    assert choose(rows, alive, BUS) == Take(expected)


@pytest.mark.parametrize(
    ("rows", "alive", "reason"),
    [
        pytest.param([held(0), held(1)], {0, 1}, "all 2 databases are leased", id="full"),
        pytest.param([unused(0), held(1)], set(), "database 1 may come free", id="a holder in doubt"),
        pytest.param([held(0), foreign(1)], {0}, "hold somebody else's keys", id="strangers"),
    ],
)
def test_when_none_is_taken_the_reason_is_told(rows: list[Row], alive: set[int], reason: str) -> None:
    """A replica that is restarted must not begin a new database and leave its own without a holder."""
    choice = choose(rows, alive, BUS)
    assert isinstance(choice, Wait) and reason in choice.reason


def test_a_lease_is_known_to_be_alive_once_it_was_seen_renewed() -> None:
    """A ttl that went up; a dead holder's only goes down, however much is left of it when we first look."""
    observation = Observation(TTL_MS)
    assert observation.update([held(1, pttl=1000), held(2)]) == set()
    assert observation.update([held(1, pttl=900), held(2, pttl=TTL_MS - 100)]) == set()
    assert observation.update([held(1, pttl=2400), held(2, pttl=TTL_MS)]) == {1, 2}
    assert observation.update([held(1, pttl=2300), held(2, pttl=1400)]) == {1}, "not renewed for half its ttl"


def test_a_lease_granted_since_we_look_is_alive_and_one_about_to_be_given_up_is_not() -> None:
    """Whoever was granted it lived a moment ago; whoever drains is about to leave."""
    observation = Observation(TTL_MS)
    assert observation.update([unused(1)]) == set()
    assert observation.update([held(1)]) == {1}
    assert observation.update([replace(held(1, pttl=2000), lease="999 replica-new")]) == {1}
    assert observation.update([replace(held(1, state="draining"), lease="999 replica-new")]) == set()


async def reason_to_wait(settings: MeshSettings) -> str:
    """What an applicant says it waits for."""
    reasons: list[str] = []

    def listen(applicant: Applicant) -> None:
        applicant.on_wait = reasons.append

    async def apply() -> None:
        async with join(Worker(), settings, applicant=listen):
            raise AssertionError("it was granted a lease")

    applying = asyncio.ensure_future(apply())

    async def told() -> bool:
        if applying.done():
            applying.result()
        return bool(reasons)

    try:
        await eventually(told)
    finally:
        applying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await applying
    return reasons[-1]


async def test_without_a_server_it_waits_and_says_so() -> None:
    """Redis may come later; a supervisor that restarts us would not help."""
    settings = mesh_settings(RedisSettings(host="127.0.0.1", port=supervisor.free_port(), connect_timeout_ms=200))
    assert "Redis cannot be reached" in await reason_to_wait(settings)


async def test_a_wrong_password_ends_it_at_once(server: Server) -> None:
    """Waiting cannot help; the password is in no message."""
    with server.redis() as admin:
        admin.config_set("requirepass", "right")
    for password in ("wrong-password", None):
        settings = mesh_settings(RedisSettings(host="127.0.0.1", port=server.port, password=password))
        with pytest.raises(WrongCredentials, match="refuses the user or the password") as caught:
            async with join(Worker(), settings):
                pass
        assert "wrong-password" not in str(caught.value)


async def test_a_database_that_the_server_does_not_have_ends_it_at_once(server: Server) -> None:
    """As a sentence, not as a crash that a supervisor repeats."""
    settings = mesh_settings(RedisSettings(host="127.0.0.1", port=server.port, db=99))
    with pytest.raises(SetupError, match="out of range"):
        async with join(Worker(), settings):
            pass


async def test_a_server_that_is_too_old_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version it has and the one it needs."""

    async def info(self: FakeClient, section: str | None = None) -> dict[str, str]:
        return {"redis_version": "6.2.14"}

    monkeypatch.setattr(FakeClient, "info", info)
    settings = mesh_settings(RedisSettings(), isolation="prefix")
    with pytest.raises(ServerTooOld, match=r"the server is 6\.2\.14; the mesh needs 7\.0 or later"):
        async with join(Worker(), settings, connections=FakeConnections(settings.redis)):
            pass


def user(server: Server, *rules: str) -> RedisSettings:
    """A Redis user with these rules, beside the default one."""
    with server.redis() as admin:
        admin.execute_command("ACL", "SETUSER", "hosted", "on", ">secret", "~*", *rules)
    return RedisSettings(host="127.0.0.1", port=server.port, username="hosted", password="secret")


async def test_credentials_that_may_not_manage_users_are_refused_unless_told_otherwise(server: Server) -> None:
    """Isolation that the server cannot enforce is never pretended; MESH_ISOLATION=prefix goes on without, knowingly."""
    redis_settings = user(server, "+@all", "-acl")
    with pytest.raises(IsolationUnavailable, match="MESH_ISOLATION=prefix"):
        async with join(Worker(), mesh_settings(redis_settings)):
            pass
    async with join(Worker(), mesh_settings(redis_settings, isolation="prefix")) as replica:
        assert replica.database == 1


async def test_credentials_that_may_not_even_ask_for_the_version_are_refused(server: Server) -> None:
    """A sentence that says what is missing."""
    with pytest.raises(SetupError, match="refuses INFO"):
        async with join(Worker(), mesh_settings(user(server, "+@all", "-info"))):
            pass


async def test_a_database_with_somebody_elses_keys_is_never_taken(mesh_of: Members, server: Server) -> None:
    """Nothing of theirs is read, moved or deleted; where no other is free, it waits and says why."""
    for number in (1, 3):
        with server.redis(db=number) as stranger:
            stranger.set("theirs", "precious")
    members = await mesh_of(2, databases=4)
    assert [member.database for member in members] == [2, 0]
    settings = mesh_settings(server.settings, databases=4)
    assert "the only free databases ([1, 3]) hold somebody else's keys" in await reason_to_wait(settings)
    for number in (1, 3):
        with server.redis(db=number) as stranger:
            assert stranger.keys() == ["theirs"]


async def test_every_grant_has_a_higher_epoch_also_on_an_emptied_server(server: Server) -> None:
    """Never below Redis's clock, so that an emptied server cannot repeat one."""
    epochs = []
    for _ in range(3):
        async with join(Worker(), mesh_settings(server.settings)) as replica:
            epochs.append(replica.epoch)
        with server.redis() as admin:
            admin.flushall()
    assert epochs == sorted(set(epochs))
    seconds, _ = redis.Redis(port=server.port).time()
    assert abs(epochs[-1] / 1000 - seconds) < 60
