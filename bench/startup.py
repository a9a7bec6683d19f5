"""The start: the time from `mesh up` to ready with four replicas, and the parts of import time and memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil

from bench.environments import ROOT
from bench.http import bare
from bench.processes import child, until
from bench.record import Ratio, Record, Settings
from bench.replicas import is_ready
from bench.report import table
from bench.servers import valkey
from bench.spread import Spread, interleaved, per_round
from quart_app.local.ports import free_port

REPLICAS = 4
#: `mesh up` prints this when everything is ready.
READY_LINE = "Ctrl-C drains"
TOP = 14

#: Stages of a replica's import; each is measured in a process of its own, in time and memory.
STAGES = {
    "Python alone": "pass",
    "+ redis, uvloop": "import redis.asyncio, uvloop",
    "+ pydantic, structlog": "import redis.asyncio, uvloop, pydantic_settings, structlog",
    "+ the mesh": "import uvloop, mesh",
    "+ Quart, Hypercorn": "import uvloop, mesh, quart, hypercorn.asyncio",
    "a replica, all services": (
        "import quart_app.process as main; from mesh import MeshSettings; from quart_app.settings import AppSettings; "
        "main.Process(AppSettings(), MeshSettings())"
    ),
}
MEASURE_ITSELF = "; import psutil as _p; print(_p.Process().memory_full_info().uss)"


def mesh_up() -> float:
    """Return the seconds from the command until it prints that the mesh is ready."""
    with tempfile.TemporaryDirectory(prefix="bench-mesh-") as folder:
        argv = [Path(sys.executable).with_name("mesh"), "up", "--replicas", str(REPLICAS), "--port", str(free_port())]
        begun = time.perf_counter()
        with child([*argv, "--data", folder], listen=True, patience_s=20) as process:
            for line in process.stdout or ():
                if READY_LINE in line:
                    return time.perf_counter() - begun
    raise RuntimeError("`mesh up` ended before it was ready")


def replica() -> tuple[float, int]:
    """Return the seconds until one replica with all services is ready, and its own memory then."""
    with ExitStack() as stack:
        server = stack.enter_context(valkey())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-replica-"))
        port = free_port()
        environ = {"REDIS_URL": server.url, "PORT": str(port), "PRIVATE_PORT": "0", "LOG_LEVEL": "error"}
        begun = time.perf_counter()
        process = stack.enter_context(
            child([sys.executable, "-m", "quart_app"], environ=environ, folder=Path(folder), patience_s=10)
        )
        until(lambda: is_ready(port), 60, "a replica is ready", 0.02)
        return time.perf_counter() - begun, own_memory(process.pid)


def bare_route() -> tuple[float, int]:
    """Return the seconds until the bare Quart application is ready, and its own memory then."""
    begun = time.perf_counter()
    with bare() as (_, pid):
        return time.perf_counter() - begun, own_memory(pid)


def own_memory(pid: int) -> int:
    """Return the memory that the end of a process would free, without what it shares with others (USS)."""
    return int(psutil.Process(pid).memory_full_info().uss)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python of this environment in an empty folder until it ends."""
    with tempfile.TemporaryDirectory(prefix="bench-stage-") as folder:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "LOG_LEVEL": "error"},
            cwd=folder,
            check=True,
            text=True,
            capture_output=True,
            timeout=60,
        )


def stage(code: str) -> tuple[float, int]:
    """Return the seconds that a process runs this code, and its own memory in bytes."""
    begun = time.perf_counter()
    run_python("-c", code)
    seconds = time.perf_counter() - begun
    return seconds, int(run_python("-c", code + MEASURE_ITSELF).stdout.split()[-1])


def import_times() -> dict[str, float]:
    """Return the milliseconds of import by top-level package, the longest first."""
    told = run_python("-X", "importtime", "-c", STAGES["a replica, all services"]).stderr
    return dict(by_package(told).most_common(TOP))


def by_package(told: str) -> Counter[str]:
    """Return the self times of `-X importtime`, in ms, summed over each top-level package."""
    found: Counter[str] = Counter()
    for line in told.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if line.startswith("import time:") and own.strip().isdigit():
            package = rest.rpartition("|")[2].strip().split(".")[0]
            name = "the standard library" if package in sys.stdlib_module_names else package
            found[name] += int(own) / 1000
    return found


def measure(settings: Settings) -> Record:
    """Measure everything once a round."""
    series: dict[str, list[float]] = {}
    imports: list[dict[str, float]] = []

    def note(name: str, value: float) -> None:
        series.setdefault(name, []).append(value)

    def timed(name: str, run: Callable[[], tuple[float, int]]) -> Callable[[], None]:
        def measured() -> None:
            seconds, memory = run()
            note(f"{name}|seconds", seconds)
            note(f"{name}|MB", memory / 1e6)

        return measured

    steps: dict[str, Callable[[], None]] = {
        "mesh up": lambda: note("mesh up|seconds", mesh_up()),
        "replica": timed("replica", replica),
        "bare": timed("bare", bare_route),
        "imports": lambda: imports.append(import_times()),
        **{name: timed(name, lambda code=code: stage(code)) for name, code in STAGES.items()},
    }
    for number, name in interleaved(list(steps), settings.rounds):
        steps[name]()
        print(f"  round {number + 1} {name}", file=sys.stderr)
    measured = {name: Spread.of(values) for name, values in series.items()}
    return Record("startup", settings, measured, ratios(series), facts={"imports": medians(imports)})


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each package that is in every round."""
    names = set.intersection(*(set(one) for one in rounds))
    found = {name: statistics.median(one[name] for one in rounds) for name in names}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def ratios(series: dict[str, list[float]]) -> dict[str, Ratio]:
    pairs = {
        "until ready, a replica / a bare Quart application": ("replica|seconds", "bare|seconds"),
        f"until ready, `mesh up` with {REPLICAS} replicas / a bare Quart application": (
            "mesh up|seconds",
            "bare|seconds",
        ),
        "memory, a replica / a bare Quart application": ("replica|MB", "bare|MB"),
    }
    return {
        title: Ratio.of(per_round(series[ours], series[theirs]), more_is_better=False)
        for title, (ours, theirs) in pairs.items()
    }


def present(record: Record, plots: Path) -> str:
    """Return the section of docs/benchmarks.md."""
    labels = {
        "mesh up": f"`mesh up`, {REPLICAS} replicas, to ready",
        "replica": "one replica with all services, to ready",
        "bare": "a bare Quart application, to ready",
        **{name: f"process: {name}" for name in STAGES},
    }
    rows = [
        [
            label,
            record.measured[f"{name}|seconds"].text(2, " s"),
            record.measured[f"{name}|MB"].text(0, " MB") if f"{name}|MB" in record.measured else "",
        ]
        for name, label in labels.items()
    ]
    imports = [[name, f"{value:.0f} ms"] for name, value in record.facts["imports"].items()]
    return "\n\n".join(
        [
            table(["", "time", "memory of its own"], rows),
            record.ratio_table(),
            "What a replica's import is made of (self time by package, with the cost of measuring it):",
            table(["package", "time"], imports),
            record.circumstances(),
        ]
    )
