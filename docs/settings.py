"""Makes docs/settings.md, the list of all settings, from the classes that read them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"
PACKAGES = ("mesh", "quart_app")

HEAD = """\
# Settings

Settings are environment variables. Replicas and the `mesh` command also read the file `.env` of the folder that they
start in, or the file that `ENV_FILE` names; a variable of the environment wins over a line of the file. `env.example`
is a file to start from.

A secret can be a file instead. Its name is the name of the setting in lower case (`redis_password` for
`REDIS_PASSWORD`), and its folder is `SECRETS_DIR` (`/run/secrets`). Space and line ends around a value do not count.

A value that is not valid ends the replica at its start, with exit status 78 and a sentence that says why. A variable
that looks like a setting and is none is named in the log, and by `mesh up` on the terminal.

`make pages` writes this page; a test fails if it is not current.
"""

Row = tuple[str, str, str]


def settings_classes() -> Iterator[type[BaseSettings]]:
    """Yield every settings class of the packages, in the order of their modules."""
    for module in settings_modules():
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, BaseSettings) and member.__module__ == module.__name__:
                yield member


def settings_modules() -> Iterator[Any]:
    for package in map(importlib.import_module, PACKAGES):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=refuse)
        for name in sorted(each.name for each in found if each.name.endswith(".settings")):
            yield importlib.import_module(name)


def refuse(name: str) -> None:
    """Raise ImportError: a package that cannot be imported would be missing silently."""
    raise ImportError(f"{name} cannot be imported")


def rows(settings: type[BaseSettings]) -> Iterator[Row]:
    """Yield name, default and meaning of each setting. A group of settings has its rows elsewhere."""
    comments = comments_of(settings)
    for name, field in settings.model_fields.items():
        if not is_group(field):
            meaning = field.description or comments.get(name, "")
            yield variable(settings, name, field), default(field), f"{meaning}{bounds(field)}".strip()


def is_group(field: FieldInfo) -> bool:
    return inspect.isclass(field.annotation) and issubclass(field.annotation, BaseSettings)


def variable(settings: type[BaseSettings], name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    if alias is not None:
        choices = getattr(alias, "choices", [alias])
        return " or ".join(str(choice).upper() for choice in choices)
    return f"{settings.model_config.get('env_prefix', '')}{name}".upper()


def default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Enum):
        value = value.value
    return "" if value is None or value == "" else f"`{value}`"


def bounds(field: FieldInfo) -> str:
    """Return the limits and choices that validation knows."""
    said = []
    for rule in field.metadata:
        for word, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if getattr(rule, word, None) is not None:
                said.append(f"{sign} {getattr(rule, word)}")
    said += [" or ".join(f"`{choice}`" for choice in choices_of(field.annotation))]
    text = ", ".join(part for part in said if part)
    return f" ({text})" if text else ""


def choices_of(annotation: Any) -> list[str]:
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    return [choice for choice in get_args(annotation) if isinstance(choice, str)]


def comments_of(settings: type[BaseSettings]) -> dict[str, str]:
    """Return the `#:` comments above fields, for classes that describe their fields there."""
    found: dict[str, str] = {}
    pending: list[str] = []
    for line in inspect.getsource(settings).splitlines():
        if comment := re.fullmatch(r"\s*#: ?(.*)", line):
            pending.append(comment[1])
        elif field := re.match(r"    (\w+)\s*:", line):
            found[field[1]] = " ".join(pending)
            pending = []
    return found


def head_rows(name: str) -> Iterator[Row]:
    """Yield what the comment at the head of a file lists: name, default (- is none), meaning."""
    for line in (ROOT / name).read_text().splitlines():
        if match := re.fullmatch(r"#   ([A-Z_]+) +(\S+)  +(\S.*)", line):
            yield match[1], "" if match[2] == "-" else f"`{match[2]}`", match[3]


def table(lines: Iterator[Row]) -> str:
    body = [f"| `{name}` | {value} | {meaning.replace('|', chr(92) + '|')} |" for name, value, meaning in lines]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *body])


def page() -> str:
    parts = [HEAD]
    for settings in settings_classes():
        said = inspect.getdoc(settings) or ""
        parts.append(
            f"## {settings.__name__}\n\n{said}\n\nRead in `{settings.__module__}`.\n\n{table(rows(settings))}\n"
        )
    parts.append(
        f"## Caddyfile\n\nCaddy reads these, not the replicas.\n\n{table(head_rows('quart_app/local/Caddyfile'))}\n"
    )
    compose = table(head_rows("compose.yaml"))
    parts.append(f"## compose.yaml\n\n`docker compose` reads these, also from a file `.env`.\n\n{compose}\n")
    return "\n".join(parts)
