"""The environment of all templates. It escapes everything that is shown, and an unknown name is an error."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from quart_app.dashboard.assets import Assets


def template_environment(assets: Assets) -> Environment:
    """Return the environment with the templates of this package; `url('live.css')` in them is the address of a file."""
    templates = Environment(
        loader=PackageLoader("quart_app.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["url"] = assets.url
    return templates
