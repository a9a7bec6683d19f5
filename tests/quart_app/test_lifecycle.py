"""One service's trouble is its own: the others open, serve and leave as if it were not there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from quart import Blueprint, Quart
from redis.exceptions import ResponseError

from mesh import LeaseLost, SetupError, Unavailable
from mesh.raw import Replica
from quart_app import lifecycle
from quart_app.http import problems
from quart_app.lifecycle import Services
from quart_app.service import Service
from tests.support.waiting import eventually

REPLICA = cast(Replica, None)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setattr(lifecycle, "MIN_PAUSE_S", 0.02)
    monkeypatch.setattr(lifecycle, "MAX_PAUSE_S", 0.05)


class Fake:
    """A service whose lifespan raises the given errors, one at each opening, and then stays open."""

    def __init__(self, name: str, *errors: BaseException) -> None:
        self.errors: Iterator[BaseException] = iter(errors)
        self.hold = asyncio.Event()
        self.hold.set()
        self.broken = asyncio.Event()
        self.events: list[str] = []
        self.trouble = ""
        blueprint = Blueprint(name, __name__)
        blueprint.add_url_rule(f"/{name}", name, self.view)
        self.service = Service(name, public=[blueprint], lifespan=self.lifespan, trouble=lambda: self.trouble)

    async def view(self) -> str:
        return "done"

    @contextlib.asynccontextmanager
    async def lifespan(self, replica: Replica) -> AsyncIterator[None]:
        self.events.append("opening")
        await self.hold.wait()
        for error in self.errors:
            raise error
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._break())
            self.events.append("open")
            yield
            self.events.append("left in order")
            watching.cancel()

    async def _break(self) -> None:
        await self.broken.wait()
        self.broken.clear()
        raise Unavailable("the disk is full")


def served(*fakes: Fake) -> tuple[Services, Callable[[str], Any]]:
    """The services, and a function that asks a route of theirs."""
    services = Services([fake.service for fake in fakes], CollectorRegistry())
    app = Quart(__name__)
    problems.install(app)
    for fake in fakes:
        for blueprint in fake.service.public:
            app.register_blueprint(blueprint)
    return services, app.test_client().get


async def test_a_service_that_fails_answers_503_and_the_others_serve() -> None:
    """The 503 names the service and the reason, and says when to ask again."""
    good, bad = Fake("good"), Fake("bad", *(SetupError("no folder can be made") for _ in range(100)))
    services, get = served(good, bad)
    async with services.running(REPLICA, wait_s=5):
        assert (await get("/good")).status_code == 200
        refused = await get("/bad")
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
        assert (await refused.get_json())["detail"] == "the service bad is not ready: no folder can be made"
        assert services.not_ready() == {"bad": "no folder can be made"}


async def test_a_failed_service_is_opened_again_until_it_opens() -> None:
    """There is a pause between two attempts; then the service serves like any other."""
    late = Fake("late", Unavailable("no database"), ValueError("a mistake"), Unavailable("no database"))
    services, get = served(late)
    async with services.running(REPLICA, wait_s=5):
        assert (await get("/late")).status_code == 503

        async def open_now() -> bool:
            return bool((await get("/late")).status_code == 200)

        await eventually(open_now)
        assert services.not_ready() == {}
    assert late.events == ["opening"] * 4 + ["open", "left in order"]


async def test_an_unexpected_error_tells_a_client_nothing_of_itself() -> None:
    """The error may hold an address or a password; only the log has it."""
    bad = Fake("bad", *(ValueError("postgres://user:secret@host") for _ in range(100)))
    services, _ = served(bad)
    async with services.running(REPLICA, wait_s=5):
        assert services.not_ready() == {"bad": "it failed unexpectedly; the server log has the error"}


async def test_an_error_of_redis_is_named_for_what_it_means() -> None:
    """A key of another type is somebody's mistake, and no defect of the service."""
    bad = Fake("bad", *(ResponseError("WRONGTYPE Operation against a key") for _ in range(100)))
    services, _ = served(bad)
    async with services.running(REPLICA, wait_s=5):
        assert services.not_ready()["bad"].startswith("a key of the mesh was overwritten with a value of another type")


async def test_a_service_that_breaks_while_it_runs_is_opened_again() -> None:
    """Until then its 503 says why; the replica goes on."""
    one = Fake("one")
    services, get = served(one)
    async with services.running(REPLICA, wait_s=5):
        one.broken.set()

        async def opened_again() -> bool:
            return one.events.count("open") == 2

        await eventually(opened_again)
        assert (await get("/one")).status_code == 200


async def test_the_pauses_grow_after_a_service_was_ready_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that was ready for long, and then cannot open, is not opened again and again without a rest."""
    monkeypatch.setattr(lifecycle, "MIN_PAUSE_S", 0.005)
    monkeypatch.setattr(lifecycle, "MAX_PAUSE_S", 0.25)
    one = Fake("one")
    services, _ = served(one)
    async with services.running(REPLICA, wait_s=5):
        await asyncio.sleep(0.3)
        one.errors = iter(Unavailable("the disk is full") for _ in range(1000))
        one.broken.set()
        await asyncio.sleep(1.5)
        assert 4 < one.events.count("opening") < 30


async def test_leaving_ends_a_service_that_breaks_at_the_same_moment() -> None:
    """If the error took the place of the cancellation, the replica would never leave."""
    one = Fake("one")
    services, _ = served(one)
    with pytest.raises(ExceptionGroup):
        async with asyncio.timeout(5), services.running(REPLICA, wait_s=5):
            one.broken.set()
            raise ValueError("the replica fails, too")


async def test_a_slow_service_is_waited_for_no_longer_than_asked() -> None:
    """The others serve then, and the slow one answers 503 until it is ready."""
    slow = Fake("slow")
    slow.hold.clear()
    services, get = served(slow)
    async with asyncio.timeout(5), services.running(REPLICA, wait_s=0.05):
        assert services.not_ready() == {"slow": "it is starting"}
        assert (await get("/slow")).status_code == 503
        slow.trouble = "the grades are being restored"
        assert services.not_ready() == {"slow": "the grades are being restored"}
        slow.trouble = ""
        slow.hold.set()

        async def ready() -> bool:
            return services.not_ready() == {}

        await eventually(ready)


async def test_leaving_ends_a_service_that_never_opened() -> None:
    """The drain of a replica does not wait for what cannot be ready."""
    slow, failing = Fake("slow"), Fake("failing", *(Unavailable("down") for _ in range(100)))
    slow.hold.clear()
    services, _ = served(slow, failing)
    async with asyncio.timeout(5), services.running(REPLICA, wait_s=0.05):
        pass
    assert "left in order" not in slow.events


async def test_a_lost_lease_is_not_one_services_trouble() -> None:
    """A lost lease ends the membership, alone or among other errors."""
    for error in (LeaseLost("over"), ExceptionGroup("several", [ValueError(), LeaseLost("over")])):
        services, _ = served(Fake("one", error))
        with pytest.raises(ExceptionGroup) as raised:
            async with services.running(REPLICA, wait_s=5):
                await asyncio.sleep(5)
        assert raised.value.subgroup(LeaseLost) is not None


async def test_a_service_tells_of_trouble_while_it_serves() -> None:
    """`/readyz` names it although its routes still answer."""
    one = Fake("one")
    services, get = served(one)
    async with services.running(REPLICA, wait_s=5):
        one.trouble = "events cannot be stored: the disk is full"
        assert services.not_ready() == {"one": "events cannot be stored: the disk is full"}
        assert (await get("/one")).status_code == 200
