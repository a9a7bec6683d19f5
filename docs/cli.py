"""Makes docs/cli.md, the list of all commands, from the definitions that `mesh --help` shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli.md"

HEAD = """\
# The command `mesh`

`mesh` runs a mesh on this machine, looks at any mesh, and acts on it. It comes with
`pip install 'quart-mesh[api,local]'`. Commands that look or act need Redis only: no replica has to answer them.
`cancel`, `dead`, `drain`, `pause` and `resume` run the same scripts as the replicas, so the books balance, and
`mesh:audit` has an entry for each.

**Which mesh?** Without options, the one that `mesh up` runs with the same folder. `--redis-url`, or the variables of
[settings](settings.md#redissettings), name another one. Commands read the file `.env` of the folder that they start in.
All commands that need a Redis have these options:

{common}

**Exit status.** 0: done. 1: it could not be done, and the last line says why. 2: the command line is wrong. 78: the
settings or the server do not work like this, so that a new start does not help.

A replica alone is `python -m quart_app`. It has no options, only [settings](settings.md). It exits with 0 after
SIGTERM, with 75 when it cannot go on and a new start may help, and with 78 as above.

`make pages` writes this page; a test fails if it is not current.
"""
#: Options that are described once, at the head of the page.
COMMON = ("redis_url", "data")


def commands() -> Iterator[tuple[click.Context, click.Command]]:
    """Yield every command with its context, groups before their commands."""
    from quart_app.cli import main

    yield from below(click.Context(main, info_name="mesh"), main)


def below(context: click.Context, command: click.Command) -> Iterator[tuple[click.Context, click.Command]]:
    yield context, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from below(click.Context(found, parent=context, info_name=name), found)


def default(option: click.Option) -> str:
    shown = option.show_default
    if isinstance(shown, str):
        return f"`{shown}`"
    value = option.default
    # click has an object of its own for "no default".
    return f"`{value}`" if isinstance(value, int | str) and not isinstance(value, bool) else ""


def row(context: click.Context, option: click.Option) -> str:
    names = " ".join(f"`{name}`" for name in option.opts)
    if not option.is_flag:
        names += f" {option.make_metavar(context).split()[0]}"
    variable = f"`{option.envvar}`" if isinstance(option.envvar, str) else ""
    limits = f" ({option.type.min} to {option.type.max})" if isinstance(option.type, click.IntRange) else ""
    return f"| {names} | {variable} | {default(option)} | {one_line(option.help)}{limits} |"


def one_line(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()


def section(context: click.Context, command: click.Command) -> str:
    """Return the section of one command."""
    title = "##" if context.parent is None or context.parent.parent is None else "###"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    paragraphs = [one_line(part) for part in (command.help or "").split("\n\n")]
    parts = [f"{title} {context.command_path}", f"    {usage}", *filter(None, paragraphs)]
    options = [one for one in command.params if isinstance(one, click.Option)]
    own = [one for one in options if one.name not in COMMON]
    if own:
        parts.append(table(context, own))
    return "\n\n".join(parts)


def table(context: click.Context, options: list[click.Option]) -> str:
    rows = [row(context, option) for option in options]
    return "\n".join(["| option | variable | default | meaning |", "| --- | --- | --- | --- |", *rows])


def page() -> str:
    """Return the page."""
    found = {context.command_path: (context, command) for context, command in commands()}
    context, status = found["mesh status"]
    common = [one for one in status.params if isinstance(one, click.Option) and one.name in COMMON]
    head = HEAD.replace("{common}", table(context, common))
    sections = [section(*each) for path, each in found.items() if path != "mesh"]
    return head + "\n" + "\n\n".join(sections) + "\n"
