"""The rules of this repository that a program can check: sizes, names, folders, contracts, and where tests are.

Each list below names the exceptions to one rule, with a reason. An exception that is no longer needed fails, too, so
the lists only say what is true.
"""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mesh", "quart_app")
FOLDERS = (*PACKAGES, "tests", "bench", "docs", "examples")
LONGEST_FUNCTION, LONGEST_MODULE = 50, 400

#: Words with which a docstring would continue another sentence.
CONTINUATIONS = {"Also", "And", "Because", "But", "Else", "Even", "Nor", "Or", "Otherwise", "So"}

#: Functions over 50 lines: `path::function` -> the reason.
LONG_FUNCTIONS = {
    "tests/quart_app/values/test_dictionary.py::machine_of": "a state machine of hypothesis: a class inside a function",
}

#: Modules over 400 lines -> the reason.
LONG_MODULES = {
    "tests/journeys/test_messages.py": "one journey per promise of the service, over the same two providers",
    "tests/mesh/events/test_consumer.py": "one suite for one class",
    "tests/mesh/journal/test_journal.py": "one suite for one class",
    "tests/mesh/quota/test_quota.py": "one suite for one class",
    "tests/mesh/requests/test_effects.py": "one suite for one class",
    "tests/mesh/requests/test_in_place.py": "one suite for one class",
    "tests/mesh/test_client.py": "one suite for one class",
    "tests/mesh/test_behaviour.py": "the behaviour of a whole mesh, over both servers",
    "tests/quart_app/grades/test_replication.py": "one suite for one class",
    "tests/quart_app/values/test_pool.py": "one suite for one class",
    "tests/quart_app/messages/test_routes.py": "one suite for all routes of the service",
}

#: Modules without a test file of their name -> the test file that covers them.
TESTED_BY = {
    "mesh/events/reader.py": "mesh/events/test_consumer.py",
    "mesh/groups/consumer.py": "mesh/events/test_consumer.py",
    "mesh/groups/reader.py": "mesh/requests/test_streams.py",
    "mesh/journal/position.py": "mesh/journal/test_journal.py",
    "mesh/journal/snapshots.py": "quart_app/grades/test_replication.py",
    "mesh/later/due.py": "mesh/later/test_waking.py",
    "mesh/later/entering.py": "mesh/later/test_lane_entries.py",
    "mesh/later/options.py": "mesh/later/test_lanes.py",
    "mesh/operations/sending.py": "mesh/later/test_waking.py",
    "mesh/operations/reads.py": "mesh/operations/test_guards.py",
    "mesh/operations/transaction.py": "mesh/operations/test_guards.py",
    "mesh/replica.py": "mesh/test_behaviour.py",
    "mesh/requests/calls.py": "mesh/test_behaviour.py",
    "mesh/requests/answers.py": "mesh/test_behaviour.py",
    "mesh/requests/consumer.py": "mesh/test_behaviour.py",
    "mesh/requests/runner.py": "mesh/requests/test_handling.py",
    "mesh/requests/work.py": "mesh/test_behaviour.py",
    "mesh/requests/scripts.py": "mesh/requests/test_effects.py",
    "mesh/requests/store.py": "mesh/requests/test_effects.py",
    "mesh/testing/fake_server.py": "mesh/testing/test_kit.py",
    "mesh/testing/kit_replica.py": "mesh/testing/test_kit.py",
    "mesh/testing/record.py": "mesh/testing/test_kit.py",
    "mesh/testing/servers.py": "mesh/testing/test_kit.py",
    "mesh/testing/wire.py": "mesh/testing/test_kit.py",
    "mesh/testing/workers.py": "mesh/testing/test_kit.py",
    "mesh/wire/batch.py": "mesh/wire/test_clients.py",
    "mesh/wire/link.py": "mesh/wire/test_clients.py",
    "mesh/wire/codec.py": "mesh/requests/test_protocol.py",
    "mesh/wire/script.py": "mesh/test_behaviour.py",
    "quart_app/__main__.py": "journeys/test_leases.py",
    "quart_app/addresses/models.py": "quart_app/addresses/test_routes.py",
    "quart_app/addresses/service.py": "journeys/test_addresses.py",
    "quart_app/app.py": "quart_app/http/test_openapi.py",
    "quart_app/cli.py": "quart_app/messages/test_cli.py",
    "quart_app/exits.py": "journeys/test_up.py",
    "quart_app/grades/carry_over.py": "quart_app/grades/test_replication.py",
    "quart_app/grades/entries.py": "quart_app/grades/test_replication.py",
    "quart_app/grades/known_state.py": "quart_app/grades/test_replication.py",
    "quart_app/grades/metrics.py": "quart_app/grades/test_replication.py",
    "quart_app/grades/models.py": "quart_app/grades/test_routes.py",
    "quart_app/grades/pending_sets.py": "quart_app/grades/test_replication.py",
    "quart_app/grades/restoring.py": "quart_app/grades/test_replication.py",
    "quart_app/grades/service.py": "journeys/test_grades.py",
    "quart_app/grades/settings.py": "quart_app/grades/test_routes.py",
    "quart_app/grades/snapshot_keeper.py": "quart_app/grades/test_replication.py",
    "quart_app/grades/sources.py": "journeys/test_grades.py",
    "quart_app/http/request_log.py": "quart_app/http/test_application.py",
    "quart_app/local/fork_server.py": "quart_app/local/test_forks.py",
    "quart_app/local/spawning.py": "quart_app/local/test_processes.py",
    "quart_app/local/errors.py": "quart_app/local/test_cli.py",
    "quart_app/messages/accounts.py": "quart_app/messages/test_routes.py",
    "quart_app/messages/metrics.py": "quart_app/messages/test_routes.py",
    "quart_app/messages/models.py": "quart_app/messages/test_routes.py",
    "quart_app/messages/service.py": "quart_app/messages/test_routes.py",
    "quart_app/movements/metrics.py": "quart_app/movements/test_ledger.py",
    "quart_app/movements/migrations/env.py": "quart_app/movements/test_database.py",
    "quart_app/movements/migrations/versions/m0001_movements.py": "quart_app/movements/test_database.py",
    "quart_app/movements/models.py": "quart_app/movements/test_intake.py",
    "quart_app/movements/service.py": "journeys/test_movements.py",
    "quart_app/movements/tables.py": "quart_app/movements/test_store.py",
    "quart_app/providers/__main__.py": "quart_app/providers/test_launch.py",
    "quart_app/security/guessable.py": "quart_app/security/test_identity.py",
    "quart_app/service.py": "quart_app/http/test_openapi.py",
    "quart_app/values/child.py": "quart_app/values/test_pool.py",
    "quart_app/values/computation.py": "quart_app/values/test_pool.py",
    "quart_app/values/curves.py": "quart_app/values/test_factorise.py",
    "quart_app/values/job_routes.py": "journeys/test_factorisation.py",
    "quart_app/values/lanes.py": "quart_app/values/test_pool.py",
    "quart_app/values/preferences.py": "quart_app/values/test_routes.py",
    "quart_app/values/service.py": "quart_app/values/test_routes.py",
    "quart_app/values/settings.py": "quart_app/test_settings.py",
}


@cache
def modules(*folders: str) -> list[Path]:
    """Return all modules below these folders, relative to the root."""
    return [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


def subpackages() -> Iterator[Path]:
    """Yield the packages of the application and the mesh, relative to the root."""
    return (module.parent for module in modules(*PACKAGES) if module.name == "__init__.py")


def test_no_function_is_longer_than_fifty_lines() -> None:
    """A function that does not fit on a screen is several functions; the exceptions are named."""
    long = {
        f"{module}::{node.name}"
        for module in modules(*FOLDERS)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == LONG_FUNCTIONS.keys(), "split the function; LONG_FUNCTIONS lists exactly the exceptions"


def test_a_module_over_four_hundred_lines_has_a_reason() -> None:
    """A longer module has several subjects, or a reason."""
    long = {
        str(module) for module in modules(*FOLDERS) if len((ROOT / module).read_text().splitlines()) > LONGEST_MODULE
    }
    assert long == LONG_MODULES.keys(), "split the module; LONG_MODULES lists exactly the exceptions"


def test_a_class_name_means_one_class() -> None:
    """Two classes of one name force `import ... as ...` and a second look."""
    found: dict[str, set[Path]] = defaultdict(set)
    for module in modules(*PACKAGES):
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(module)
    twice = {name: [str(module) for module in where] for name, where in found.items() if len(where) > 1}
    assert twice == {}, "rename one of them"


def test_a_docstring_begins_as_a_sentence_of_its_own() -> None:
    """A docstring stands alone: none continues the name of its function."""
    continuing = {
        f"{module}:{node.body[0].lineno}"
        for module in modules(*FOLDERS)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if (text := ast.get_docstring(node)) and text.split()[0] in CONTINUATIONS
    }
    assert continuing == set(), "name what the sentence is about"


def test_an_init_holds_imports_and_all() -> None:
    """Code in an `__init__.py` is found by nobody who looks for a module."""
    full = {str(package) for package in subpackages() if any(map(_is_code, tree(package / "__init__.py").body))}
    assert full == set(), "move the code to a module"


def _is_code(node: ast.stmt) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return False
        case ast.Assign(targets=[ast.Name(id="__all__" | "__version__")]):
            return False
    return True


def _contracts() -> list[configparser.SectionProxy]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return [config[name] for name in config.sections() if name.startswith("importlinter:contract:")]


def test_every_package_has_an_exhaustive_contract() -> None:
    """The imports of every package with two modules point downwards, and the contract covers all modules."""
    covered = {
        container
        for contract in _contracts()
        if contract["type"] == "layers" and contract.getboolean("exhaustive", False)
        for container in contract.get("containers", "").split()
    }
    need = {".".join(package.parts) for package in subpackages() if len(_children(package)) > 1}
    assert need - covered == set(), "write a layers contract with `exhaustive = true` into setup.cfg"


def _children(package: Path) -> list[str]:
    """Return the names of a package's modules and subpackages."""
    inside = (ROOT / package).iterdir()
    return [
        path.name
        for path in inside
        if (path.suffix == ".py" and path.name != "__init__.py") or (path / "__init__.py").exists()
    ]


def test_a_lua_file_stands_beside_the_python_that_runs_it() -> None:
    """Some module in the folder of a script names the script."""
    lost = [
        str(script.relative_to(ROOT))
        for folder in PACKAGES
        for script in sorted((ROOT / folder).rglob("*.lua"))
        if not any(_names(module, script) for module in script.parent.glob("*.py"))
    ]
    assert not lost, "move the script beside the module that runs it, or remove it"


def _names(module: Path, script: Path) -> bool:
    return any(
        isinstance(node, ast.Constant) and node.value in (script.name, script.stem)
        for node in ast.walk(tree(module.relative_to(ROOT)))
    )


def test_every_module_is_tested_by_a_file_that_can_be_found() -> None:
    """A module's tests are in the test file of its name, or in the one that the list names."""
    untested = {
        str(module)
        for module in modules(*PACKAGES)
        if module.name != "__init__.py" and not (ROOT / "tests" / module.parent / f"test_{module.name}").exists()
    }
    assert untested == TESTED_BY.keys(), "write the test file; TESTED_BY says which file tests each of the others"


@pytest.mark.parametrize("path", sorted(set(TESTED_BY.values())))
def test_the_named_test_file_exists(path: str) -> None:
    """The list of tests elsewhere names files that exist."""
    assert (ROOT / "tests" / path).is_file()


def test_helpers_come_from_support() -> None:
    """No test imports a conftest or another test module: pytest may load those under other names."""
    lent = {
        f"{module}: {name}"
        for module in modules("tests")
        for name in _imported(module)
        if name.startswith("tests.") and (name.endswith(".conftest") or ".test_" in name)
    }
    assert lent == set(), "move the helper to tests/support"


def _imported(module: Path) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_each_mutation_of_the_fault_matrix_finds_the_text_that_it_replaces() -> None:
    """The long test of a mutation runs less often than its text changes."""
    command = [sys.executable, "-m", "tests.support.faults.mutations"]
    found = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (found.stdout, found.stderr, found.returncode) == ("", "", 0)
