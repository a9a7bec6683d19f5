"""docs/migrate.md: its blocks of the mesh make a program that does what the page says."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mesh import Class
from mesh.testing import MeshKit

TEXT = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text("utf-8")
#: Blocks of other programs are marked `py`.
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """Return the module that all blocks of the mesh make together."""
    path = tmp_path / "page_of_migration.py"
    path.write_text("\n\n".join(BLOCKS))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[path.stem]


async def test_an_order_counts_once_and_its_report_goes_with_it(page: Any) -> None:
    """A lost answer and a retried error change nothing; a refused order sends no report; the night clears reports."""
    async with MeshKit(page.shop, replicas=2, classes="A") as kit:
        await kit.redis(0).hset("shared:shop:stock", "tea", 5)
        kit.lose_answers(2)
        assert await page.buy(kit[0]) == 3
        await kit.advance(seconds=2)
        assert await kit.read(page.reported["tea"], database=0) == 1
        with pytest.raises(page.OutOfStock) as refused:
            await kit[0].call(page.order, page.Order("tea", 4), to=Class("A"), deadline=timedelta(seconds=5))
        assert refused.value.left == 3
        assert set((await kit[1].gather(page.left, page.Product("tea"))).values()) == {3}
        assert kit.ran(page.report) == 1
        await kit.advance(hours=24)
        assert kit.ran(page.nightly) == 1


def test_every_name_of_the_tables_exists() -> None:
    """What the right column names with a dot belongs to the library."""
    import mesh
    from mesh import events, quota
    from mesh.testing import MeshKit as Kit

    names = {"mesh": mesh.Mesh, "tx": mesh.Transaction}
    for owner, name in re.findall(r"`(?:await )?(mesh|tx)\.(\w+)\(", TEXT):
        assert hasattr(names[owner], name), name
    assert events and quota and Kit
