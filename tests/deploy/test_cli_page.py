"""docs/cli.md says what `mesh --help` says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from quart_app.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_page", ROOT / "docs/cli.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: ModuleType) -> None:
    """`python docs/cli.py` writes it again."""
    assert script.main(["--check"]) == 0


def test_every_option_that_help_prints_is_on_the_page(script: ModuleType) -> None:
    """The output of `--help` is read, not the definitions: what a user sees is on the page."""
    page = (ROOT / "docs" / "cli.md").read_text()
    runner = CliRunner()
    seen = set()
    for context, command in script.commands():
        printed = runner.invoke(main, [*context.command_path.split()[1:], "--help"]).output
        seen |= set(re.findall(r"^  (--[\w-]+)", printed, flags=re.MULTILINE)) - {"--help", "--version"}
        assert context.command_path == "mesh" or f" {context.command_path}\n" in page
        assert isinstance(command, click.Group) or command.help
    assert {"--replicas", "--like", "--json", "--redis-url"} <= seen
    assert all(f"`{option}`" in page for option in seen)
