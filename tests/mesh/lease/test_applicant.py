"""How a replica waits for a lease and is granted one, and what it says meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis import exceptions as redis_errors

from mesh import IsolationUnavailable, MeshSettings, RedisSettings, ServerTooOld, SetupError, WrongCredentials, keys
from mesh.lease.applicant import Applicant
from mesh.raw import Worker, join
from mesh.testing.fake_server import FakeClient, FakeConnections
from quart_app.local.ports import free_port
from tests.support.backend import Backend
from tests.support.server import Server
from tests.support.waiting import eventually


async def reason_to_wait(settings: MeshSettings) -> str:
    """Let a replica apply, and return what it says it waits for."""
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
    """Redis may start later than the replica; a restart of the replica would not help."""
    settings = MeshSettings(redis=RedisSettings(host="127.0.0.1", port=free_port(), connect_timeout_ms=200))
    assert "Redis cannot be reached" in await reason_to_wait(settings)


async def test_a_wrong_password_ends_it_at_once(server: Server) -> None:
    """Waiting cannot help. No message shows the password."""
    with server.redis() as admin:
        admin.config_set("requirepass", "right")
    for password in ("wrong-password", None):
        settings = MeshSettings(redis=RedisSettings(host="127.0.0.1", port=server.port, password=password))
        with pytest.raises(WrongCredentials, match="refuses the user or the password") as caught:
            async with join(Worker(), settings):
                pass
        assert "wrong-password" not in str(caught.value)


async def test_a_database_that_the_server_does_not_have_ends_it_at_once(server: Server) -> None:
    """REDIS_DB is beyond the server's databases: an error with a sentence, not a crash that repeats."""
    settings = MeshSettings(redis=RedisSettings(host="127.0.0.1", port=server.port, db=99))
    with pytest.raises(SetupError, match="out of range"):
        async with join(Worker(), settings):
            pass


async def test_a_server_that_is_too_old_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the version found and the version needed."""

    async def info(self: FakeClient, section: str | None = None) -> dict[str, str]:
        return {"redis_version": "6.2.14"}

    monkeypatch.setattr(FakeClient, "info", info)
    settings = MeshSettings(redis=RedisSettings(), isolation="prefix")
    with pytest.raises(ServerTooOld, match=r"the server is 6\.2\.14; the mesh needs 7\.0 or later"):
        async with join(Worker(), settings, connections=FakeConnections(settings.redis)):
            pass


def user(server: Server, *rules: str) -> RedisSettings:
    """Create a Redis user with these rules, and return settings that use it."""
    with server.redis() as admin:
        admin.execute_command("ACL", "SETUSER", "hosted", "on", ">secret", "~*", *rules)
    return RedisSettings(host="127.0.0.1", port=server.port, username="hosted", password="secret")


async def test_credentials_that_may_not_manage_users_are_refused_unless_told_otherwise(server: Server) -> None:
    """Without rights to enforce isolation the replica starts only where MESH_ISOLATION=prefix says so."""
    redis_settings = user(server, "+@all", "-acl")
    with pytest.raises(IsolationUnavailable, match="MESH_ISOLATION=prefix"):
        async with join(Worker(), MeshSettings(redis=redis_settings)):
            pass
    async with join(Worker(), MeshSettings(redis=redis_settings, isolation="prefix")) as replica:
        assert replica.database == 1


async def test_credentials_that_may_not_even_ask_for_the_version_are_refused(server: Server) -> None:
    """The error says which right is missing."""
    with pytest.raises(SetupError, match=r"lacks a right: .*'info'"):
        async with join(Worker(), MeshSettings(redis=user(server, "+@all", "-info"))):
            pass


async def test_a_database_with_foreign_keys_is_never_taken(mesh_of: Backend, server: Server) -> None:
    """Foreign keys are not read, moved or deleted. Without another free database the replica waits and says why."""
    for number in (1, 3):
        with server.redis(db=number) as stranger:
            stranger.set("theirs", "precious")
    members = await mesh_of(2, databases=4)
    assert [member.database for member in members] == [2, 0]
    settings = MeshSettings(redis=server.settings, databases=4)
    assert "the only free databases (1, 3) hold keys that are not the mesh's" in await reason_to_wait(settings)
    for number in (1, 3):
        with server.redis(db=number) as stranger:
            assert stranger.keys() == ["theirs"]


async def test_the_server_and_each_database_say_which_format_they_have(server: Server, mesh_of: Backend) -> None:
    """A release with another number refuses them, so this one changes with the format only."""
    (one,) = await mesh_of(1)
    with server.redis() as bus, server.redis(one.database) as own:
        assert (bus.get("mesh:format"), own.get(f"db{one.database}:format")) == ("1", "1")


@pytest.mark.parametrize("database", [0, 3])
async def test_a_mesh_of_a_newer_release_is_refused_whatever_its_database(server: Server, database: int) -> None:
    """The number of the format is in the database of the shared keys."""
    settings = MeshSettings(redis=server.settings.model_copy(update={"db": database}))
    with server.redis(database) as bus:
        bus.set("mesh:format", 2)
    with pytest.raises(SetupError, match="newer release"):
        async with join(Worker(), settings):
            pass
    with server.redis(database) as bus:
        bus.delete("mesh:format")
    async with join(Worker(), settings) as replica:
        assert await replica.commit(replica.transaction())
    with server.redis(database) as bus:
        assert bus.get("mesh:format") == "1"


async def test_a_lease_is_granted_when_memory_is_full(server: Server) -> None:
    """A replica that restarts then must take its database up: reads and settlement go on without new work."""
    with server.redis() as admin:
        admin.config_set("maxmemory", 1)
    async with join(Worker(), MeshSettings(redis=server.settings)) as replica:
        assert replica.database == 1


async def test_grants_without_a_transaction_give_each_replica_its_own_database(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 7 refuses transactions when memory is full. Replicas that ask at the same moment all get a lease."""

    async def refused(*_: object) -> list[object]:
        raise redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")

    monkeypatch.setattr(Applicant, "_run_in_transaction", staticmethod(refused))
    async with contextlib.AsyncExitStack() as stack:
        joining = [join(Worker(), MeshSettings(redis=server.settings)) for _ in range(4)]
        async with asyncio.timeout(30):
            members = await asyncio.gather(*map(stack.enter_async_context, joining))
        assert len({member.database for member in members}) == 4
        for member in members:
            assert await member.commit(member.transaction())


@pytest.mark.parametrize(("answer", "said"), [([], ["EVAL"]), (["7", "A", "5"], ["EVAL", "DELUSER", "SETUSER"])])
async def test_a_replica_that_was_slower_leaves_the_holders_user_alone(answer: list[str], said: list[str]) -> None:
    """Without a transaction the user is changed by its own commands, which only the replica with the lease may send."""
    sent = []

    class Client:
        async def execute_command(self, *words: str) -> object:
            sent.append(words[-1])
            return answer if words[-1] == "EVAL" else "OK"

    commands: list[Any] = [("EVAL",), ("ACL", "DELUSER"), ("ACL", "SETUSER")]
    client: Any = Client()
    answers = await Applicant._run_one_by_one(client, commands)
    assert (answers[0], sent) == (answer, said)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [("min-replicas-to-write", "1", "NOREPLICAS"), ("maxclients", "1", "max number of clients")],
)
async def test_a_passing_refusal_at_the_start_is_waited_out(
    server: Server, setting: str, value: str, reason: str
) -> None:
    """The replica says what it waits for, and is granted a lease as soon as the server can do it."""
    settings = MeshSettings(redis=server.settings)
    with server.redis() as admin:
        before = admin.config_get(setting)[setting]
        admin.config_set(setting, value)
        assert reason in await reason_to_wait(settings)
        joining = join(Worker(), settings)
        entering = asyncio.ensure_future(joining.__aenter__())
        await asyncio.sleep(0.3)
        assert not entering.done()
        admin.config_set(setting, before)
        assert (await asyncio.wait_for(entering, 2)).database == 1
        await joining.__aexit__(None, None, None)


async def test_too_few_databases_end_it_with_a_sentence(make_server: Callable[..., Server]) -> None:
    """The server has 8, the mesh wants 16."""
    server = make_server("--databases", "8")
    with pytest.raises(SetupError, match="MESH_DATABASES must fit the `databases` setting"):
        async with join(Worker(), MeshSettings(redis=server.settings)):
            pass
    async with join(Worker(), MeshSettings(redis=server.settings, databases=8)) as replica:
        assert replica.database == 1


async def test_every_grant_has_a_higher_epoch_also_on_an_emptied_server(server: Server) -> None:
    """The epoch is never below Redis's clock, so that an emptied server cannot repeat one."""
    epochs = []
    for _ in range(3):
        async with join(Worker(), MeshSettings(redis=server.settings)) as replica:
            epochs.append(replica.epoch)
        with server.redis() as admin:
            admin.flushall()
    assert epochs == sorted(set(epochs))
    seconds, _ = redis.Redis(port=server.port).time()
    assert abs(epochs[-1] / 1000 - seconds) < 60


async def test_a_second_mesh_on_the_same_server_is_refused(mesh_of: Backend, server: Server) -> None:
    """One mesh claims a server: the second one is refused with the name of the first, which notices nothing."""
    (first,) = await mesh_of(1)
    other_bus = server.settings.model_copy(update={"db": 1})
    for settings in (MeshSettings(redis=other_bus), MeshSettings(redis=server.settings, name="other")):
        with pytest.raises(
            SetupError, match=r"the mesh 'mesh' uses this server.*database 0.*MESH_NAME=mesh and REDIS_DB=0"
        ):
            async with join(Worker(), settings):
                pass
    assert [member.replica for member in await first.roster()] == [first.id]
    with server.redis() as admin:
        assert admin.get("mesh:claim") == "mesh 0"
        assert admin.acl_users() == ["default", "mesh-db1"]
    with server.redis(db=1) as admin:
        assert sorted(admin.keys()) == ["db1:class", "db1:format"], "nothing of the second mesh"


async def test_two_meshes_that_start_together_on_an_empty_server_do_not_share_it(server: Server) -> None:
    """The grant itself checks the claim: exactly one of them gets the server."""
    other = server.settings.model_copy(update={"db": 1})
    settings = [MeshSettings(redis=each, databases=4) for each in (server.settings, other) for _ in range(3)]
    joining = [join(Worker(), each) for each in settings]
    results = await asyncio.gather(*(each.__aenter__() for each in joining), return_exceptions=True)
    kinds = [isinstance(result, SetupError) for result in results]
    assert kinds in ([True] * 3 + [False] * 3, [False] * 3 + [True] * 3), results
    for each, refused in zip(joining, kinds, strict=True):
        if not refused:
            await each.__aexit__(None, None, None)


async def test_the_claim_outlives_its_replicas_and_ends_with_the_data(server: Server) -> None:
    """The data of a mesh that is stopped are still its own; an emptied server is free."""
    async with join(Worker(), MeshSettings(redis=server.settings)):
        pass
    other = MeshSettings(redis=server.settings, name="other")
    with pytest.raises(SetupError, match="delete the key mesh:claim in database 0"):
        async with join(Worker(), other):
            pass
    with server.redis() as admin:
        admin.flushall()
    async with join(Worker(), other) as replica:
        assert replica.database == 1


async def test_a_claim_between_the_look_and_the_grant_counts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grant looks again. The claim is in database 0, wherever the bus is."""
    take = Applicant._try_to_take

    async def late(self: Applicant, *words: Any) -> Any:
        with server.redis() as admin:
            admin.set(keys.CLAIM, "another 3")
        return await take(self, *words)

    monkeypatch.setattr(Applicant, "_try_to_take", late)
    with pytest.raises(SetupError, match="the mesh 'another' uses this server"):
        async with join(Worker(), MeshSettings(redis=server.settings.model_copy(update={"db": 3}))):
            pass
    with server.redis(db=3) as admin:
        assert not any(map(admin.exists, map(keys.lease, range(16))))


@pytest.mark.parametrize(("key", "db", "names"), [("mesh:format", 0, "this mesh"), ("db2:format", 2, "database 2")])
async def test_data_of_a_newer_release_are_not_touched(server: Server, key: str, db: int, names: str) -> None:
    """After a roll-back the older release ends with a sentence: it might hide records that it does not know."""
    async with join(Worker(), MeshSettings(redis=server.settings)):
        pass
    with server.redis(db=db) as admin:
        admin.set(key, "2")
    with pytest.raises(SetupError, match=f"a newer release has written .*{names} .format 2, this release knows 1"):
        async with join(Worker(), MeshSettings(redis=server.settings)):
            pass


async def test_data_without_a_format_are_taken_up(server: Server) -> None:
    """Such data are of a release before formats; the grant notes the format from now on."""
    with server.redis(db=1) as admin:
        admin.set("db1:class", "C")
    async with join(Worker(), MeshSettings(redis=server.settings)) as replica:
        assert (replica.database, replica.cls) == (1, "C")
    with server.redis(db=1) as admin:
        assert admin.get("db1:format") == "1"


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
async def test_a_server_that_may_evict_keys_is_refused(server: Server, policy: str) -> None:
    """Acknowledged values would vanish; the sentence says what to set."""
    with server.redis() as admin:
        admin.config_set("maxmemory-policy", policy)
    with pytest.raises(SetupError, match=f"maxmemory-policy is {policy}.*set maxmemory-policy noeviction"):
        async with join(Worker(), MeshSettings(redis=server.settings)):
            pass


async def test_it_asks_again_soon_but_not_without_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is away, a replica rests for 0.1 to 0.25 s between two attempts."""
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    async def away(self: Applicant, client: object) -> None:
        if len(rests) == 3:
            raise SetupError("enough")
        raise redis_errors.ConnectionError("away")

    monkeypatch.setattr(Applicant, "_apply", away)
    monkeypatch.setattr("mesh.lease.applicant.asyncio.sleep", rest)
    settings = RedisSettings()
    with pytest.raises(SetupError, match="enough"):
        await Applicant(MeshSettings(redis=settings), FakeConnections(settings), "r1", {}).apply()
    assert len(rests) == 3 and all(0.1 <= seconds <= 0.25 for seconds in rests)
