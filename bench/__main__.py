"""`python -m bench CLAIM …` measures and writes docs/benchmarks.md; `python -m bench check` compares ratios."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from types import ModuleType

from bench import record, report
from bench.record import Record, Settings

#: Each claim is a module with `measure(Settings) -> Record` and `present(Record, plots) -> str`.
CLAIMS = (
    "request_reply", "http", "results", "end_to_end", "batch", "store_scale", "mesh_scale", "startup", "factorise",
    "page", "typed", "hot_key", "options",
)  # fmt: skip


def module(claim: str) -> ModuleType:
    """Import and return the module of a claim, so that a claim needs only its own tools."""
    return importlib.import_module(f"bench.{claim}")


def base(name: str) -> str:
    """Return the claim of a record: `request_reply_everysec` belongs to `request_reply`."""
    return next(claim for claim in CLAIMS if name.startswith(claim))


def numbers(text: str) -> tuple[int, ...]:
    """Parse a list such as `1,16,128`."""
    return tuple(int(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    defaults = {one.name: one.default for one in fields(Settings)}
    found = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    found.add_argument("claims", nargs="+", choices=[*CLAIMS, "all", "check", "note"], metavar="CLAIM")
    found.add_argument("--rounds", type=int, default=defaults["rounds"], help="rounds of each contender (%(default)s)")
    found.add_argument("--seconds", type=float, default=defaults["seconds"], help="length of each level (%(default)s)")
    found.add_argument("--levels", type=numbers, default=(), help="calls in flight, replicas or values: 1,16,128")
    found.add_argument(
        "--only", type=lambda text: tuple(text.split(",")), default=(), help="names of the contenders to measure"
    )
    found.add_argument("--durability", choices=("off", "everysec", "always"), default="off", help="Redis's AOF")
    found.add_argument("--full", action="store_true", help="the long form of a claim that has one")
    found.add_argument(
        "--dry", action="store_true", help="print the result only: change neither the record nor the page"
    )
    return found


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(**{one.name: getattr(options, one.name) for one in fields(Settings)})


def run(claim: str, settings: Settings) -> Record:
    """Measure one claim and print it."""
    print(f"{claim}:", file=sys.stderr)
    found: Record = module(claim).measure(settings)
    with tempfile.TemporaryDirectory(prefix="bench-plots-") as folder:
        print(module(claim).present(found, Path(folder)))
    return found


def measure(claims: list[str], settings: Settings, *, dry: bool) -> int:
    for claim in claims:
        found = run(claim, settings)
        if not dry:
            record.save({**record.load(), found.name: found})
            report.put(found.name, module(claim).present(found, report.PLOTS))
    return 0


def check(claims: list[str], settings: Settings) -> int:
    """Measure again and compare ratios. Return 1 when a ratio became worse beyond the spread, else 0."""
    recorded = record.load()
    worse = []
    for claim in claims:
        if claim in recorded:
            worse += record.regressions(recorded[claim], run(claim, settings))
    for sentence in worse:
        print(f"WORSE  {sentence}")
    print("bench-check:", f"{len(worse)} ratios became worse" if worse else "no ratio became worse")
    return 1 if worse else 0


def main() -> int:
    options = parser().parse_args()
    asked = [claim for claim in options.claims if claim in CLAIMS]
    claims = asked or list(CLAIMS)
    if "check" in options.claims:
        return check(claims, settings_of(options))
    if "note" in options.claims:
        for claim, found in record.load().items():
            report.put(claim, module(base(claim)).present(found, report.PLOTS))
        return 0
    return measure(claims, settings_of(options), dry=options.dry)


if __name__ == "__main__":
    sys.exit(main())
