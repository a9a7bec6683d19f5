"""What the library offers, and what it needs: the public modules, and nothing of the application."""

from __future__ import annotations

import configparser
import importlib
import importlib.metadata as metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

PUBLIC = ["mesh", "mesh.raw", "mesh.events", "mesh.journal", "mesh.quota", "mesh.dead", "mesh.control"]
SETUP = Path(__file__).parents[2] / "setup.cfg"


def names_of(requirement: str) -> str:
    """Return the name of a distribution, as pip compares it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip())[0]).lower()


def closure(requirements: list[str]) -> set[str]:
    """Return the distributions that these need, themselves included; extras count as needed."""
    found: set[str] = set()
    waiting = [names_of(each) for each in requirements]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [names_of(each) for each in needed if "extra ==" not in each or "hiredis" in each]
    return found


#: Lets only the standard library and some modules be imported, then imports the library.
ALONE = """
import sys
allowed = set(sys.argv[1].split(",")) | sys.stdlib_module_names | {"mesh"}

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

# What the interpreter itself has loaded at its start is taken back, too.
for name in [name for name in sys.modules if name.partition(".")[0] not in allowed | {"__main__"}]:
    del sys.modules[name]
sys.meta_path.insert(0, Refusing())
import MODULES
"""


def test_the_library_works_with_what_it_is_installed_with() -> None:
    """The library works without Quart, SQLAlchemy and all else that only an extra brings."""
    config = configparser.ConfigParser()
    config.read(SETUP)
    installed = closure([line for line in config["options"]["install_requires"].splitlines() if line[:1].isalpha()])
    owners = metadata.packages_distributions()
    allowed = [name for name, some in owners.items() if any(names_of(owner) in installed for owner in some)]
    assert {"redis", "msgspec"} <= set(allowed) and not {"quart", "sqlalchemy", "click", "fakeredis"} & set(allowed)
    code = ALONE.replace("MODULES", ", ".join(PUBLIC))
    command = [sys.executable, "-c", code, ",".join(allowed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_has_what_it_promises(module: str) -> None:
    """Each name of `__all__` is there."""
    found = importlib.import_module(module)
    assert sorted(name for name in found.__all__ if not hasattr(found, name)) == []
