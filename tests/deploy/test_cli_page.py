"""docs/cli.md says what `mesh --help` says."""

from __future__ import annotations

import re

import click
from click.testing import CliRunner

from docs import cli as cli_page
from quart_app.cli import main


def test_the_page_is_current() -> None:
    """`make pages` writes it again."""
    assert cli_page.PAGE.read_text() == cli_page.page()


def test_every_option_that_help_prints_is_on_the_page() -> None:
    """The output of `--help` is read, not the definitions: what a user sees is on the page."""
    page = cli_page.PAGE.read_text()
    runner = CliRunner()
    seen = set()
    for context, command in cli_page.commands():
        printed = runner.invoke(main, [*context.command_path.split()[1:], "--help"]).output
        seen |= set(re.findall(r"^  (--[\w-]+)", printed, flags=re.MULTILINE)) - {"--help", "--version"}
        assert context.command_path == "mesh" or f" {context.command_path}\n" in page
        assert isinstance(command, click.Group) or command.help
    assert {"--replicas", "--like", "--json", "--redis-url"} <= seen
    assert all(f"`{option}`" in page for option in seen)
