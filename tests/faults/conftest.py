"""Prints the table of the fault matrix after its rows have run."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.table import Table

from tests.support.faults.matrix import RESULTS, SEED, Result

COLUMNS = ("row", "fault", "recovered", "lost", "doubled", "unanswered", "verdict", "took", "notes")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not RESULTS:
        return
    table = Table(title=f"Fault matrix, seed {SEED} (FAULTS_SEED={SEED} runs it again)")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for result in sorted(RESULTS, key=lambda result: result.number):
        table.add_row(*_cells(result))
    console = Console(width=170)
    with console.capture() as capture:
        console.print(table)
    terminalreporter.write(capture.get())


def _cells(result: Result) -> list[str]:
    findings = result.findings
    return [
        str(result.number),
        result.fault,
        ", ".join(f"{seconds:.2f} s" for seconds in result.took_s) or "-",
        str(len(findings.lost)),
        str(len(findings.doubled)),
        str(len(findings.unanswered)),
        result.verdict,
        f"{result.row_s:.0f} s",
        "; ".join(result.notes),
    ]
