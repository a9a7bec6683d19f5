"""Adds the variables of the file `.env` to the environment, and searches it for names that nothing reads.

python -m quart_app.environment    print a sentence for each name that looks like a setting but is none
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError

from mesh import SECRETS_DIR, explain
from quart_app.registry import SERVICES

#: Names that are read, but not by a class of settings: by commands, by Caddy, by compose.yaml. A text that is split is
#: shorter than a list (SIM905).
OTHER_NAMES = frozenset(
    "ENV_FILE SECRETS_DIR SECRETS MESH_DATA TAG HTTP_PORT HTTPS_PORT OPERATORS_PORT SITE "  # noqa: SIM905
    "REDIS_MAXMEMORY REDIS_APPENDFSYNC REDIS_MEMORY CADDY_LOG_LEVEL CADDY_TRACING ACCESS_LOG PROXIES_IN_FRONT "
    "PROMETHEUS_PORT GRAFANA_PORT BROWSER_PORT PROVIDER_HOST PROVIDER_LATENCY_MS".split()
)
#: Ends of variables that name no setting: Docker (for a link) and Kubernetes make them for one of their own services,
#: if it is called redis or mesh.
CONTAINER_VARIABLES = re.compile(r"_(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_(TCP|UDP)(_.*)?)?|ENV_.*|NAME)$")
#: How similar a name must be to a known name to count as a misspelling of it. `difflib` measures this: 0 for nothing in
#: common, 1 for equal names. A name of four or more letters is similar enough if it has one letter too many. A name of
#: eight or more is also similar enough if one letter is wrong. A smaller number would take names of other programs for
#: misspellings.
LEAST_SIMILARITY = 0.86
#: The words of every sentence about an unknown name; `mesh up` looks for them in the output of this module.
NO_SETTING = "is no setting"
#: Fewest characters of a name that is compared with the known ones. With a smaller number, the check would find more
#: misspellings of PORT or HOST, but would also suspect more of the short names that other programs read.
SHORTEST_COMPARED = 5


class UnreadableFile(Exception):
    """The file of settings cannot be read; the text is the sentence that the user reads."""


def load() -> None:
    """Add the variables of the file `.env`, or of the one that ENV_FILE names, to the environment.

    A variable that is set already keeps its value. Values are taken as they are written: `$NAME` has no meaning in
    them. Raises UnreadableFile.

    pydantic skips the file of a secret if the file is a folder, or a link that leads out of SECRETS_DIR. After `load`,
    pydantic's warning about this is an error. Otherwise a default would be in force in place of the secret.
    """
    warnings.filterwarnings("error", message="(attempted to load )?secret file", category=UserWarning)
    path = Path(os.environ.get("ENV_FILE") or ".env")
    if not path.is_file():
        if os.environ.get("ENV_FILE") and (path.is_dir() or not path.exists()):
            raise UnreadableFile(f"ENV_FILE names {path}, which {'is a folder' if path.is_dir() else 'does not exist'}")
        # There is no `.env`, or a bind mount has made a folder in its place; or ENV_FILE names a device, as /dev/null.
        return
    try:
        values = dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UnreadableFile(f"{path} cannot be read: {why}") from error
    for name, value in values.items():
        if value is None:
            raise UnreadableFile(f"{path}: {name} has no value; a line is NAME=value")
        os.environ.setdefault(name, value)


def sentence_about(error: Exception) -> str:
    """Return the sentence that tells a user why settings cannot be used. It contains no setting's value."""
    if isinstance(error, ValidationError):
        return f"the environment is not valid: {explain(error)}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"a secret in {SECRETS_DIR} is not UTF-8 text"
    return str(error)


#: The classes of all errors that reading settings can raise; `sentence_about` has words for each.
SETTINGS_ERRORS = (UnreadableFile, ValidationError, SettingsError, OSError, UnicodeDecodeError, UserWarning)


def names_by_class() -> dict[type[BaseSettings], set[str]]:
    """Return the names that each class of settings reads. Only imported classes are known: `main` imports all.

    Each class of settings derives from BaseSettings itself. `__subclasses__` would not return a class further down.
    """
    return {settings_class: set(_names_of(settings_class)) for settings_class in BaseSettings.__subclasses__()}


def _names_of(settings_class: type[BaseSettings]) -> Iterator[str]:
    prefix = str(settings_class.model_config.get("env_prefix", ""))
    for name, field in settings_class.model_fields.items():
        if field.validation_alias is None:
            yield f"{prefix}{name}".upper()
        else:
            # `choices`: an AliasChoices has several names.
            yield from (str(alias) for alias in getattr(field.validation_alias, "choices", [field.validation_alias]))


def sentences_about_unknown(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each name that is no setting but begins with a prefix of ours or is like one of ours."""
    known_by_class = names_by_class()
    known_names = OTHER_NAMES.union(*known_by_class.values())
    prefixes = tuple(
        str(prefix) for settings_class in known_by_class if (prefix := settings_class.model_config.get("env_prefix"))
    )
    return [
        sentence
        for name in sorted(environ)
        if name not in known_names and (sentence := _sentence_about_name(name, known_names, prefixes))
    ]


def _sentence_about_name(name: str, known_names: Iterable[str], prefixes: tuple[str, ...]) -> str:
    """Return the sentence about one unknown name; "" if it may be the variable of another program."""
    if not name.isupper() or CONTAINER_VARIABLES.search(name):
        return ""
    similar_names = (
        difflib.get_close_matches(name, known_names, 1, LEAST_SIMILARITY) if len(name) >= SHORTEST_COMPARED else []
    )
    if similar_names:
        return f"{name} {NO_SETTING}; did you mean {similar_names[0]}?"
    return f"{name} {NO_SETTING}" if name.startswith(prefixes) else ""


def main() -> None:
    """Write the sentences about this process's environment. `mesh up` runs this module in a process of its own."""
    # `names_by_class` knows only classes that are imported. Each service has its settings beside its module.
    for module in SERVICES.values():
        import_module(f"{module.rpartition('.')[0]}.settings")
    import_module("quart_app.settings")
    for sentence in sentences_about_unknown(os.environ):
        sys.stdout.write(f"{sentence}\n")


if __name__ == "__main__":
    main()
