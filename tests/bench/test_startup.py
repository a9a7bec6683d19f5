"""What a start is made of."""

from __future__ import annotations

import pytest

from bench.startup import by_package, medians

TOLD = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |     _json
import time:       300 |        400 |   json.decoder
import time:       500 |        900 | quart.app
import time:       250 |        250 |   quart
a warning that is none of these
"""


def test_import_times_are_summed_by_package() -> None:
    """Self times, so that nothing counts twice; the standard library is one."""
    assert by_package(TOLD) == pytest.approx({"the standard library": 0.4, "quart": 0.75})


def test_the_median_is_of_packages_that_every_round_had() -> None:
    """The package that takes longest comes first."""
    assert list(medians([{"a": 1, "b": 5, "c": 9}, {"a": 3, "b": 5}]).items()) == [("b", 5), ("a", 2)]
