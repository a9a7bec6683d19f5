"""Every error is a problem document, and one table gives each error of the mesh its status."""

from __future__ import annotations

import pytest
from quart import Quart

from mesh import errors as mesh_errors
from quart_app.http import problems
from quart_app.http.problems import Problem, from_mesh, pointer


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (mesh_errors.NoReplica("no live replica has class D", address="D"), 404, None),
        (mesh_errors.Busy(retry_after=0.2), 503, "1"),
        (mesh_errors.Unavailable(), 503, "1"),
        (mesh_errors.LeaseLost(), 503, "1"),
        (mesh_errors.Incomplete(missing=[2]), 503, "1"),
        (mesh_errors.GivenUp(), 503, "1"),
        (mesh_errors.WrongCredentials(), 503, "1"),
        (mesh_errors.DeadlineExceeded(), 504, None),
        (mesh_errors.Refused("too large", status=422, limit=9), 422, None),
    ],
)
async def test_an_error_of_the_mesh_has_its_status(
    error: mesh_errors.MeshError, status: int, retry_after: str | None
) -> None:
    """A passing failure has Retry-After; the facts of the error are members of the problem."""
    app = Quart(__name__)
    problems.install(app)

    @app.get("/")
    async def fail() -> str:
        raise error

    response = await app.test_client().get("/")
    problem = await response.get_json()
    assert (response.status_code, problem["status"], problem["detail"]) == (status, status, error.detail)
    assert response.headers.get("Retry-After") == retry_after
    assert response.content_type == "application/problem+json"
    for name, value in error.facts.items():
        assert name in ("retry_after", "status") or problem[name] == value


def test_an_error_of_the_mesh_is_a_500_only_where_it_is_a_defect_of_this_program() -> None:
    """A client that tries again meets the same."""
    defects = (mesh_errors.UsageError, mesh_errors.InvalidReply, mesh_errors.ManyParts)
    every = [cls for cls in vars(mesh_errors).values() if isinstance(cls, type)]
    for cls in every:
        if issubclass(cls, mesh_errors.MeshError):
            assert from_mesh(cls()).status in ((500,) if issubclass(cls, defects) else (404, 422, 429, 503, 504))


class NameTaken(mesh_errors.Refused, code="problems.name-taken"):
    """Somebody else has this name."""

    name: str


def test_a_services_own_refusal_is_a_409_with_its_facts() -> None:
    """A new try meets the same, so there is no Retry-After; a plain refusal may be a release that is on its way."""
    problem = from_mesh(NameTaken(name="ann"))
    assert (problem.status, problem.facts, problem.retry_after) == (409, {"name": "ann"}, None)
    assert from_mesh(mesh_errors.Refused("no replica here knows it")).status == 503


async def test_an_unforeseen_error_is_a_500_that_tells_nothing_of_our_inside() -> None:
    """The client learns nothing of the error; the log has the details."""
    app = Quart(__name__)
    problems.install(app)

    @app.get("/")
    async def fail() -> str:
        raise RuntimeError("password is hunter2")

    response = await app.test_client().get("/")
    assert response.status_code == 500 and b"hunter2" not in await response.get_data()


async def test_http_errors_are_problems_too() -> None:
    """The router's 404 and 405 are problems; a 405 has Allow."""
    app = Quart(__name__)
    problems.install(app)

    @app.get("/here")
    async def here() -> str:
        return ""

    client = app.test_client()
    absent, wrong = await client.get("/there"), await client.delete("/here")
    assert (absent.status_code, absent.content_type) == (404, "application/problem+json")
    assert wrong.status_code == 405 and "GET" in wrong.headers["Allow"]


async def test_a_retry_after_is_whole_seconds_and_never_none_at_all() -> None:
    """The seconds are rounded up, because an early retry would be refused again."""
    app = Quart(__name__)
    async with app.app_context():
        for given, said in ((0.001, "1"), (1.2, "2"), (30, "30")):
            assert Problem(503, "x", retry_after=given).response().headers["Retry-After"] == said


def test_a_pointer_escapes_what_has_a_meaning() -> None:
    """RFC 6901: ~ is ~0, / is ~1."""
    assert pointer(["a/b", 0, "~"]) == "/a~1b/0/~0" and pointer([]) == ""
