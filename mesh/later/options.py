"""The Lua that scripts of this folder and of its neighbours have in common with those of `mesh.requests`."""

from __future__ import annotations

#: What every script has that adds, moves or ends requests which may have options, as seen from a neighbour's folder.
OPTIONS = tuple(f"../requests/{name}.lua" for name in ("append", "options", "once", "limits"))
