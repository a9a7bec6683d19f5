"""Makes docs/errors.md, the list of all errors, from the classes and the sentences of the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
PACKAGES = ("mesh", "quart_app")
#: The classes of answers over HTTP: the first argument is the status.
PROBLEMS = {"Problem", "NotAdmitted", "Undelivered"}

HEAD = """\
# Errors

Over HTTP every error is `application/problem+json` (RFC 9457):

```json
{"type": "about:blank", "title": "Service unavailable", "status": 503, "detail": "the queue of class A is full …"}
```

`detail` says what happened, to which thing, and what to do. Further members are facts of the error, such as `missing`.
An answer to a body that is not valid has `errors`: a list of `{"pointer": "/0/value", "message": "…"}` with JSON
pointers (RFC 6901). Where a new try makes sense, `Retry-After` has the seconds.

In Python every error is a `mesh.MeshError`. Its `code` travels with the reply, so the caller gets the class that the
handler raised. A program's own errors are subclasses of `Refused` with a code ([library](library.md#errors)).

`make pages` writes this page from the code; a test fails if it is not current.
"""

#: When a status is answered, and whether the same request may be sent again.
STATUSES = {
    400: ("The request cannot be read.", "no"),
    401: ("The request has no session, or its name and password are wrong.", "after a login"),
    403: (
        "The caller has no right to do this; or the free provider is closed and the user may not use the paid one.",
        "later",
    ),
    404: ("There is no such thing: route, record, job, or class of the mesh.", "no"),
    405: ("The route has no such method; `Allow` names those that it has.", "no"),
    408: ("The request did not arrive in time.", "yes"),
    409: ("The request contradicts what is stored.", "no"),
    413: ("The body is larger than the route takes.", "in parts"),
    415: ("The body is not of a type that the route reads.", "no"),
    421: ("The request is for a host that this server does not answer to.", "no"),
    422: ("The content is not valid; `errors` says where.", "no"),
    429: ("Too many attempts, or more requests than a rate allows; wait for `Retry-After`.", "later"),
    431: ("The header fields are too large.", "no"),
    500: ("A mistake of the server; the log has it under the `X-Request-Id` of the answer.", "no"),
    501: ("The request uses a part of HTTP that this server does not have.", "no"),
    502: ("A provider failed; or the balancer lost the replica in the middle of the request.", "yes, for `/values`"),
    503: ("Something is away, full or not ready; `Retry-After` says when to ask again.", "yes"),
    504: ("The deadline passed. A request that no replica had begun by then is never done.", "yes, for `/values`"),
}
#: Stands for a part of a sentence that differs each time, such as a number.
OPEN = "…"


class Sentence(NamedTuple):
    """What one place of the code may answer."""

    kind: str
    text: str
    module: str


def classes() -> list[type]:
    """Return every error of the mesh and the application, the base first."""
    for package in map(importlib.import_module, PACKAGES):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Migrations run in a process of Alembic only.
            if not found.name.endswith("__main__") and ".migrations" not in found.name:
                importlib.import_module(found.name)
    from mesh.errors import MeshError

    return [MeshError, *sorted(below(MeshError), key=lambda cls: (cls.__module__, cls.code))]


def below(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        if each.__module__.partition(".")[0] in PACKAGES:
            yield each
            yield from below(each)


def statuses_given() -> dict[str, int]:
    """Return the statuses that the code gives to errors when it makes them, by the names of their classes."""
    return {
        name_of(each.call.func): one.value.value
        for each in made({cls.__name__ for cls in classes()})
        for one in each.call.keywords
        if one.arg == "status" and isinstance(one.value, ast.Constant)
    }


def class_row(cls: type, given: dict[str, int]) -> str:
    from quart_app.http.problems import from_mesh

    status = given.get(cls.__name__) or from_mesh(cls()).status
    meaning = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    return f"| `{imported_as(cls)}` | `{cls.code}` | {status} | {meaning} |"


def imported_as(cls: type) -> str:
    """Return the name to import a class by: without a module from `mesh`, else from its package if that has it."""
    if cls.__module__ == "mesh.errors":
        return cls.__name__
    package = cls.__module__.rpartition(".")[0]
    module = package if hasattr(importlib.import_module(package), cls.__name__) else cls.__module__
    return f"{module}.{cls.__name__}"


class Made(NamedTuple):
    """A call in the code that makes an error, with the module and the variables that it can see."""

    call: ast.Call
    module: str
    variables: dict[str, set[str]]


def made(names: set[str]) -> Iterator[Made]:
    """Yield every call of these names in the packages."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        yield from made_in(tree, names, module, variables_of(tree.body))


def made_in(node: ast.AST, names: set[str], module: str, variables: dict[str, set[str]]) -> Iterator[Made]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and name_of(child.func) in names:
            yield Made(child, module, variables)
        inner = variables
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = {**variables, **variables_of(list(ast.walk(child)))}
        yield from made_in(child, names, module, inner)


def sentences() -> list[Sentence]:
    """Return what the code says where it makes an error, sorted."""
    names = {cls.__name__ for cls in classes()} | PROBLEMS
    return sorted({Sentence(*one, each.module) for each in made(names) for one in said(each.call, each.variables)})


def name_of(function: ast.expr) -> str:
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def variables_of(nodes: list[ast.stmt] | list[ast.AST]) -> dict[str, set[str]]:
    """Return the sentences that some statements give to variables, by their names."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            texts = filter(None, (text_of(each) for each in branches(node.value)))
            found.setdefault(node.targets[0].id, set()).update(text for text in texts if " " in text)
    return found


def branches(node: ast.expr) -> list[ast.expr]:
    return [*branches(node.body), *branches(node.orelse)] if isinstance(node, ast.IfExp) else [node]


def said(call: ast.Call, variables: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of an error that a call makes: the status of a problem, or the name of the class."""
    kind, arguments = name_of(call.func), list(call.args)
    if kind in PROBLEMS:
        first = arguments.pop(0) if arguments else None
        if not isinstance(first, ast.Constant):
            return
        kind = str(first.value)
    for argument in branches(arguments[0]) if arguments else ():
        if isinstance(argument, ast.Name):
            yield from ((kind, text) for text in sorted(variables.get(argument.id, ())))
        elif (text := text_of(argument)) is not None:
            yield kind, text


def text_of(node: ast.expr) -> str | None:
    """Return a sentence of the code; None for an expression that is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else OPEN for part in node.values]
        return "".join(map(str, parts))
    return None


def table(head: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *rows])


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "\\<")


def page() -> str:
    """Return the page."""
    from quart_app.http.problems import TITLES

    statuses = [f"| {status} | {TITLES[status]} | {STATUSES[status][0]} | {STATUSES[status][1]} |" for status in TITLES]
    found, given = sentences(), statuses_given()
    http = [f"| {one.kind} | {cell(one.text)} | {one.module.split('.')[1]} |" for one in found if one.kind.isdigit()]
    others = [one for one in found if not one.kind.isdigit() and one.kind != "UsageError"]
    parts = [
        HEAD,
        "## HTTP statuses\n",
        table(["status", "title", "when", "send it again?"], statuses),
        "\n## Errors of the mesh\n",
        "The status is that of the HTTP answer where a route does not choose another one.\n",
        table(["error", "code", "HTTP", "meaning"], [class_row(cls, given) for cls in classes()]),
        "\n## Sentences over HTTP\n",
        f"What `detail` says, by status; {OPEN} stands for a part that differs each time.\n",
        table(["status", "detail", "from"], sorted(set(http))),
        "\n## Sentences of the mesh\n",
        "`UsageError` is left out: its text says what to write instead.\n",
        table(["error", "detail"], sorted({f"| `{one.kind}` | {cell(one.text)} |" for one in others})),
    ]
    return "\n".join(parts) + "\n"
