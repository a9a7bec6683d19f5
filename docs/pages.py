"""Writes the pages that are made from the code: docs/settings.md, docs/cli.md and docs/errors.md.

python -m docs.pages            write them
python -m docs.pages --check    name those that are not current, and exit with 1 if there is one
"""

from __future__ import annotations

import sys

from docs import cli, errors, settings

MODULES = (settings, cli, errors)


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    pages = {module.PAGE: module.page() for module in MODULES}
    stale = [page for page, text in pages.items() if page.read_text() != text]
    for page in stale:
        sys.stdout.write(f"{page.name} {'is not current' if check else 'written'}\n")
        if not check:
            page.write_text(pages[page])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
