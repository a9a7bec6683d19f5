"""How Sphinx builds the site: `make site` writes it into site/, from these pages and the docstrings, and offline."""

from __future__ import annotations

import configparser
from pathlib import Path

_SETUP = configparser.ConfigParser()
_SETUP.read(Path(__file__).parent.parent / "setup.cfg")

project = "quart-mesh"
release = version = _SETUP["metadata"]["version"]
author = "the authors of quart-mesh"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.svgbob"]
# The index of the repository; index.md is that of the site.
exclude_patterns = ["README.md"]
myst_heading_anchors = 4
#: Pages of the repository that are not in docs/: linked as files.
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = f"quart-mesh {release}"
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "alphabetical"
autodoc_typehints = "description"
