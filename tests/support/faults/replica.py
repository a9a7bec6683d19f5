"""`python -m tests.support.faults.replica`: one replica of the fault matrix.

It is `python -m quart_app` with the tally service, and with these variables:

    FAULTS_MUTATION   the safety mechanism to remove
    FAULTS_CLOCK_S    the error of this process's wall clock, in seconds
    FAULTS_JOURNAL    the file to which handlers add a line when they begin
"""

from __future__ import annotations

import os
import sys
import time


def shift_clock(by_s: float) -> None:
    """Shift this process's wall clock; its speed stays the same."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + by_s
    time.time_ns = lambda: now_ns() + int(by_s * 1e9)


def main() -> int:
    shift_clock(float(os.environ.get("FAULTS_CLOCK_S", "0")))
    from quart_app import registry

    registry.SERVICES["tally"] = "tests.support.faults.tally"
    from quart_app import process
    from tests.support.faults import mutations

    mutations.apply(os.environ.get("FAULTS_MUTATION", ""))
    return process.main()


if __name__ == "__main__":
    sys.exit(main())
