"""Writes docs/settings.md: every setting there is, from the classes that read them.

python docs/settings.py            write it
python docs/settings.py --check    exit 1 when it is not current
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
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

Everything is set by environment variables. A secret may come as a file instead: the folder `SECRETS_DIR`
(`/run/secrets`) is searched for a file named like the setting in lower case, `redis_password` for `REDIS_PASSWORD`.
A value that does not fit stops the replica at its start, with exit status 78 and a sentence that says why.

This page is made by `python docs/settings.py`; a test sees to it that it is current.
"""

Row = tuple[str, str, str]


def settings_classes() -> Iterator[type[BaseSettings]]:
    """Every settings class of the packages, in the order of their modules."""
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
    """A package that cannot be imported would be missing without a word."""
    raise ImportError(f"{name} cannot be imported")


def rows(settings: type[BaseSettings]) -> Iterator[Row]:
    """Name, default and meaning of each setting; a group of settings has rows of its own elsewhere."""
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
    """The limits and choices that validation knows of."""
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
    """The `#:` comments above fields, for classes that say it there."""
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
    """What the comment at the head of a file lists: name, default (- is none), meaning."""
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
    parts.append(f"## Caddyfile\n\nRead by Caddy, not by the replicas.\n\n{table(head_rows('Caddyfile'))}\n")
    parts.append(
        f"## compose.yaml\n\nRead by `docker compose`, also from a file `.env`.\n\n{table(head_rows('compose.yaml'))}\n"
    )
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    text = page()
    if arguments == ["--check"]:
        return int(PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
