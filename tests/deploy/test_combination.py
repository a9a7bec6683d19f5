"""The combination of Python and server that CI runs beside the usual one, by the day."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / ".ci/combination").read_text()


def test_all_combinations_are_met_within_a_week() -> None:
    """Every Python that we support, on both servers; the usual run has Python 3.11 on the server of the wheel."""
    found = re.search(r"^combinations=\((.*)\)$", SCRIPT, re.MULTILINE)
    assert found is not None
    days = found[1].split()
    assert len(days) == 7
    versions = re.findall(r"Python :: (3\.\d+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    wanted = {f"{version}:{server}" for version, server in product(versions, ("wheel", "redis"))}
    assert set(days) == wanted - {"3.11:wheel"}
    assert ".ci/combination" in (ROOT / ".ci/run").read_text()
