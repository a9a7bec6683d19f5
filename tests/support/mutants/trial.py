"""The trial of a mutant: its tests run over a copy of the tree that holds it."""

from __future__ import annotations

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

import psutil

from tests.support.mutants.mutant import Mutant

#: How a test that failed is named in pytest's summary.
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)

#: After so many tests of one trial that fail without the mutant or by chance, the trial says nothing.
MOST_BROKEN = 5


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

    def __init__(self, root: Path, plugins: Sequence[str] = ("tests.support.mutants.order",)) -> None:
        self.root = root
        #: Tests that fail without any mutant.
        self.broken: list[str] = []
        self._plugins = [f"-p{plugin}" for plugin in plugins]
        # The installed package points to the developer's tree, and pytest would load its plugin from there.
        self._environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}

    def try_mutant(self, mutant: Mutant, stages: Sequence[Sequence[str]], timeout: float) -> Verdict:
        """Run the tests of each stage until one fails, passes without the mutant, and fails with it again.

        `timeout` is in seconds, for each run. A test that also fails without the mutant is noted in `broken`, and left
        out from then on.
        """
        started = time.monotonic()
        outcome, by = Outcome.SURVIVED, ""
        for tests in stages:
            outcome, by = self._stage(mutant, tests, timeout)
            if outcome is not Outcome.SURVIVED:
                break
        return Verdict(mutant, outcome, by, time.monotonic() - started)

    def _stage(self, mutant: Mutant, tests: Sequence[str], timeout: float) -> tuple[Outcome, str]:
        unsteady: list[str] = []
        for _ in range(MOST_BROKEN):
            with self._with(mutant):
                code, output = self._pytest([*tests, *(f"--deselect={test}" for test in unsteady)], timeout)
            if code is None:
                return Outcome.TIMED_OUT, ""
            if code == 0:
                return Outcome.SURVIVED, ""
            failed = FAILED.findall(output)[:1]
            # No test is named where a module or a conftest module could not be imported.
            without, _output = self._pytest(failed or ["--collect-only", *tests], timeout)
            if without != 0:
                self.broken += failed
            elif self._fails_again(mutant, failed, timeout):
                return Outcome.KILLED, (failed or ["import"])[0]
            else:
                unsteady += failed
        return Outcome.UNCLEAR, ""

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

    def _pytest(self, arguments: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Return the exit code, None after `timeout` seconds, and the output."""
        options = ["-x", "-q", "-rfE", "-pno:cacheprovider", "--no-header", "--tb=no", "-mnot faults", *self._plugins]
        options += [f"--deselect={test}" for test in self.broken]
        with tempfile.TemporaryFile("w+") as output:
            command = [sys.executable, "-m", "pytest", *options, *arguments]
            child = subprocess.Popen(
                command, cwd=self.root, env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                code: int | None = child.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(child)
            output.seek(0)
            return code, output.read()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a run that is still going on, with the servers that its tests started."""
    if child.poll() is not None:
        return
    for process in reversed([(parent := psutil.Process(child.pid)), *parent.children(recursive=True)]):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    child.wait()


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
