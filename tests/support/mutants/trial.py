"""The trial of a mutant: its tests run over a copy of the tree that holds it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.mutants.mutant import Mutant

#: How a test that failed is named in pytest's summary.
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)

#: After so many tests of one trial that fail without the mutant or by chance, the trial says nothing.
MOST_BROKEN = 5

#: Seconds after which a test that hangs fails. All tests of the core are faster.
TEST_S = 15

#: Runs are forks of this process, which saves them the import of libraries. This process runs no test, and has no
#: thread that a fork would lack.
FORK = multiprocessing.get_context("fork")

HERE = Path(__file__).parents[3]

#: Packages that each run imports anew, from the copy.
OURS = ("conftest", "examples", "mesh", "pytest_mesh", "quart_app", "tests")

#: Libraries that tests of the core import.
LIBRARIES = (
    "fakeredis",
    "httpx",
    "hypercorn",
    "hypothesis",
    "lupa",
    "msgspec",
    "pydantic_settings",
    "quart",
    "structlog",
)


class Outcome(Enum):
    """What became of a mutant."""

    KILLED = "killed"
    #: The tests took too long. It counts as not noticed: a test that hangs fails by its own time limit.
    TIMED_OUT = "timed out"
    SURVIVED = "survived"
    #: It is in the list of equivalent mutants, and was not run.
    EQUIVALENT = "equivalent"
    #: Several tests fail without the mutant, or by chance, so that the trial says nothing.
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one trial."""

    mutant: Mutant
    outcome: Outcome
    #: The test that noticed the mutant, or the reason why none can.
    by: str = ""
    seconds: float = 0.0


class Tree:
    """A copy of the repository. Mutants are written to the copy only."""

    def __init__(self, root: Path, limits: Sequence[str] = (f"--timeout={TEST_S}",)) -> None:
        self.root = root
        #: Tests that fail without any mutant.
        self.broken: list[str] = []
        #: Tests that passed without a mutant.
        self.steady: set[str] = set()
        self._options = ["-q", "-rfE", "-pno:cacheprovider", "--no-header", "--tb=no", "-mnot faults"]
        #: Options of the runs over a mutant.
        self._limits = [*limits]
        # The installed package points to the developer's tree, and pytest would load its plugin from there.
        self._environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        plugins = [found.module for found in importlib.metadata.entry_points(group="pytest11")]
        for name in {*LIBRARIES, *plugins} - {*OURS}:
            importlib.import_module(name)

    def record(self, files: Sequence[str]) -> dict[str, Any]:
        """Run test files without a mutant, and return what each of their tests runs; pytest shows its progress."""
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            record = Path(folder, "record")
            environment = {**self._environment, "MUTANTS_RECORD": str(record)}
            command = [sys.executable, "-m", "pytest", *self._options, "-ptests.support.mutants.recorder", *files]
            subprocess.run(command, cwd=self.root, env=environment, check=False)
            found: dict[str, Any] = json.loads(record.read_text("utf-8"))
            return found

    def try_mutant(self, mutant: Mutant, stages: Sequence[Sequence[str]], timeout: float) -> Verdict:
        """Run the tests of each stage until one fails, passes without the mutant, and fails with it again.

        `timeout` is in seconds, for each run. A test that also fails without the mutant is noted in `broken`, and left
        out from then on.
        """
        started = time.monotonic()
        outcome, by = Outcome.SURVIVED, "" if stages else "no test runs it"
        for tests in stages:
            outcome, by = self._stage(mutant, tests, timeout)
            if outcome is not Outcome.SURVIVED:
                break
        return Verdict(mutant, outcome, by, time.monotonic() - started)

    def _stage(self, mutant: Mutant, tests: Sequence[str], timeout: float) -> tuple[Outcome, str]:
        unsteady: list[str] = []
        for _ in range(MOST_BROKEN):
            chosen = [test for test in tests if test not in {*unsteady, *self.broken}]
            with self._with(mutant):
                code, output = self._pytest(chosen, timeout) if chosen else (0, "")
            if code is None:
                return Outcome.TIMED_OUT, ""
            if code == 0:
                return Outcome.SURVIVED, ""
            # No test is named where a conftest module could not be imported.
            failed = FAILED.findall(output)[:1]
            if not self._passes_without(failed or chosen, timeout):
                self.broken += failed
            elif self._fails_again(mutant, failed, timeout):
                return Outcome.KILLED, (failed or ["import"])[0]
            else:
                unsteady += failed
        return Outcome.UNCLEAR, ""

    def _passes_without(self, tests: Sequence[str], timeout: float) -> bool:
        """Return whether tests pass without a mutant; those that have passed before are not run again."""
        if not self.steady.issuperset(tests):
            if self._pytest(tests, timeout)[0] != 0:
                return False
            self.steady.update(tests)
        return True

    def _fails_again(self, mutant: Mutant, failed: Sequence[str], timeout: float) -> bool:
        """Return whether a test fails with the mutant once more. On a busy machine it may have failed by chance."""
        if not failed:
            return True
        with self._with(mutant):
            return self._pytest(failed, timeout)[0] != 0

    @contextmanager
    def _with(self, mutant: Mutant) -> Iterator[None]:
        file = self.root / mutant.path
        file.write_text(mutant.after, "utf-8")
        try:
            yield
        finally:
            file.write_text(mutant.before, "utf-8")

    def _pytest(self, tests: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Return the exit code, None after `timeout` seconds, and the output."""
        with tempfile.TemporaryFile("w+") as output:
            arguments = ["-x", *self._options, *self._limits, *tests]
            child = FORK.Process(target=_run, args=(arguments, self.root, self._environment, output.fileno()))
            child.start()
            child.join(timeout)
            if child.is_alive():
                _end(child.pid or 0)
                child.join()
            code = child.exitcode
            output.seek(0)
            return (code if code is not None and code >= 0 else None), output.read()


def _run(arguments: list[str], root: Path, environment: dict[str, str], output: int) -> None:
    """Run pytest in this process, a fork that has imported no code of this repository but this package."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    os.environ.update(environment)
    os.chdir(root)
    sys.path[:] = [str(root), *(place for place in sys.path if place not in {"", str(HERE)})]
    sys.dont_write_bytecode = True
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.exit(pytest.main(arguments))


def _end(pid: int) -> None:
    """End a run that is still going on, with the servers that its tests started."""
    for process in reversed([(parent := psutil.Process(pid)), *parent.children(recursive=True)]):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def copy_of(root: Path) -> Iterator[Tree]:
    """Copy the working tree, changes that are not committed included, to a temporary folder."""
    listed = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in filter(None, names):
            if (root / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, Path(folder) / name)
        yield Tree(Path(folder))
