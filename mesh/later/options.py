"""Lua files of `mesh.requests` that scripts of this folder, and of others beside it, include."""

from __future__ import annotations

#: Each script includes these if it adds, moves or ends requests with options. The paths begin at a folder of `mesh`.
OPTIONS = tuple(f"../requests/{name}.lua" for name in ("append", "options", "once", "limits", "read_error"))
