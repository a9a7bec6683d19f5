"""The environment of all templates."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from quart_app.dashboard.assets import Assets
from quart_app.dashboard.templating import template_environment


def test_text_is_escaped_and_a_missing_name_is_an_error() -> None:
    """All text that a template shows may come from strangers."""
    templates = template_environment(Assets())
    assert templates.from_string("{{ text }}").render(text="<b>") == "&lt;b&gt;"
    assert templates.from_string("{{ url('live.css') }}").render().startswith("/assets/live.")
    with pytest.raises(UndefinedError):
        templates.from_string("{{ nothing }}").render()
