"""The result of a run, stored as JSON, so that a later run can compare its ratios (never absolute times)."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.report import table
from bench.spread import Spread, worsened
from quart_app.local import allocator

#: The name recorded when jemalloc is missing.
LIBC = "libc's malloc"
RECORDED = Path(__file__).resolve().parent / "recorded.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a measurement."""

    rounds: int = 5
    seconds: float = 2.0
    levels: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    durability: str = "off"
    full: bool = False

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Settings:
        return cls(**{**stored, "levels": tuple(stored["levels"]), "only": tuple(stored["only"])})


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our figure over that of another contender, from the same rounds."""

    spread: Spread
    more_is_better: bool = True
    #: what the ratio should reach; None when there is no goal
    goal: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], *, goal: float | None = None, more_is_better: bool = True) -> Ratio:
        return cls(Spread.of(values), more_is_better, goal)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Ratio:
        return cls(Spread.read(stored["spread"]), stored["more_is_better"], stored["goal"])

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.spread.median >= self.goal if self.more_is_better else self.spread.median <= self.goal


@dataclass(frozen=True, slots=True)
class Record:
    """The measurement of one claim."""

    name: str
    settings: Settings
    measured: dict[str, Spread]
    ratios: dict[str, Ratio]
    facts: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=lambda: this_machine())  # noqa: PLW0108 - defined below

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Record:
        return cls(
            stored["name"],
            Settings.read(stored["settings"]),
            {name: Spread.read(value) for name, value in stored["measured"].items()},
            {name: Ratio.read(value) for name, value in stored["ratios"].items()},
            stored["facts"],
            stored["machine"],
        )

    def circumstances(self) -> str:
        """The conditions of the measurement, as a sentence."""
        rounds, seconds, here = self.settings.rounds, self.settings.seconds, self.machine
        return (
            f"{rounds} rounds of {seconds:g} s; median (lowest–highest). {here['cores']} cores of "
            f"{here['architecture']}, Python {here['python']}, Valkey with {here.get('allocator', LIBC)}, "
            f"AOF {self.settings.durability}, load before the run {here['load_before']:g}, {here['date']}."
        )

    def ratio_table(self) -> str:
        """The table of ratios with their goals; empty without ratios."""
        if not self.ratios:
            return ""
        rows = [
            [
                name,
                ratio.spread.text(2),
                goal_text(ratio),
                {None: "", True: "yes", False: "not yet"}[ratio.met],
            ]
            for name, ratio in self.ratios.items()
        ]
        return table(["ratio", "median (lowest–highest)", "goal", "reached"], rows)


def goal_text(ratio: Ratio) -> str:
    """Return a goal with its direction."""
    if ratio.goal is None:
        return ""
    return f"{'≥' if ratio.more_is_better else '≤'} {ratio.goal:g}"


def this_machine() -> dict[str, Any]:
    """Return the machine and the versions of a measurement, without the name of the host."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "allocator": "jemalloc" if allocator.jemalloc() else LIBC,
        "load_before": round(os.getloadavg()[0], 1),
    }


def load(path: Path = RECORDED) -> dict[str, Record]:
    """Return all recorded claims."""
    if not path.exists():
        return {}
    return {name: Record.read(stored) for name, stored in json.loads(path.read_text()).items()}


def save(records: Mapping[str, Record], path: Path = RECORDED) -> None:
    """Write all records, in an order that keeps differences small."""
    text = json.dumps({name: asdict(records[name]) for name in sorted(records)}, indent=1, sort_keys=True)
    path.write_text(text + "\n")


def regressions(recorded: Record, now: Record) -> list[str]:
    """Return a sentence for each ratio that became worse beyond the spread of both runs."""
    return [
        f"{now.name}: {name}: was {before.spread.text(2)}, is {now.ratios[name].spread.text(2)}"
        for name, before in recorded.ratios.items()
        if name in now.ratios and worsened(before.spread, now.ratios[name].spread, more_is_better=before.more_is_better)
    ]
