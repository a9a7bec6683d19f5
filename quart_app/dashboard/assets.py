"""Style sheets, scripts and icons of the pages, under names that change with their content.

A browser may keep such a file for ever, because a file with another content has another name. The files are read once,
when the application is made, so no request reaches the file system.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from quart import Blueprint, Response
from werkzeug.exceptions import NotFound

FOLDER = Path(__file__).parent / "static"
URL_PREFIX = "/assets"
#: The files that the folder may have, by suffix, with their content types.
CONTENT_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
#: One year in seconds, the usual value for a file that never changes.
CACHE_FOR_EVER = "public, max-age=31536000, immutable"
#: A page may load only our own files and run nothing inline, and no page of another site may show it in a frame.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file in the form in which it is sent."""

    content: bytes
    content_type: str


class Assets:
    """All files of the folder, by the name in their address."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._url_names: dict[str, str] = {}
        self._assets_by_url_name: dict[str, Asset] = {}
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            # Twelve digits of the hash are enough to tell two versions of a file apart.
            url_name = f"{path.stem}.{hashlib.sha256(content).hexdigest()[:12]}{path.suffix}"
            self._url_names[path.name] = url_name
            self._assets_by_url_name[url_name] = Asset(content, CONTENT_TYPES[path.suffix])

    def url(self, file_name: str) -> str:
        """Return the address of a file in the folder. Raises KeyError if there is no such file."""
        return f"{URL_PREFIX}/{self._url_names[file_name]}"

    def routes(self) -> Blueprint:
        """Return the route GET /assets/{name}."""
        blueprint = Blueprint("assets", __name__)

        @blueprint.get(f"{URL_PREFIX}/<name>")
        async def asset(name: str) -> Response:
            file = self._assets_by_url_name.get(name)
            if file is None:
                raise NotFound
            return Response(file.content, content_type=file.content_type, headers={"Cache-Control": CACHE_FOR_EVER})

        return blueprint
