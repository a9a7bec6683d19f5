"""Plots as SVG; the same figures give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.spread import Spread


def _figure() -> tuple[Any, Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.grid(True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return pyplot, figure, axes


def lines(
    path: Path,
    curves: Mapping[str, Sequence[Spread]],
    places: Sequence[float],
    across: str,
    upwards: str,
    *,
    emphasised: str = "",
    from_zero: bool = False,
) -> None:
    """Draw curves with their ranges; both axes are logarithmic unless `from_zero`."""
    pyplot, figure, axes = _figure()
    for name, curve in curves.items():
        medians = [one.median for one in curve]
        around = [[one.median - one.lowest for one in curve], [one.highest - one.median for one in curve]]
        width = 2.6 if name == emphasised else 1.2
        axes.errorbar(places, medians, yerr=around, label=name, linewidth=width, marker="o", markersize=3, capsize=2)
    axes.set_xscale("log", base=2 if max(places) <= 1000 else 10)
    axes.set_xticks(list(places), [f"{place:g}" for place in places])
    if from_zero:
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
    axes.set(xlabel=across, ylabel=upwards)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
