"""A report about pictures of every kind, and a browser that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import disk
import numpy as np
import pytest
from browsing import HOSTILE, Page

from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import RunRequest
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with right, wrong, hostile and broken pictures."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        disk.move_in(folder, patch)
        for i in range(70):
            label = ("cat", "cup", "person")[i % 3]
            disk.write_picture(Path(f"pictures/{label}/{i:02}.png"), np.roll((disk.CAT, disk.COFFEE)[i % 2], i, axis=1))
        disk.write_picture(Path(f"pictures/{HOSTILE}/'\"&<b>{{{{7*7}}}}.png"), disk.CAT)
        Path("pictures/broken.jpg").write_text("</script><script>alert(1)</script>")
        disk.write_picture(Path("pictures/cat/black.png"), disk.BLACK)
        request = RunRequest(
            "shop:net", source="pictures", out="out", methods=("grad-cam", "layer-cam"), overlays=0, workers=1
        )
        assert run_and_report(request).report == "out/report.html"
        store = Store.at("out")
        rows, nothing = store.read_shard(0), {"is_empty": True, "heatmap": bytes(2 * 7 * 9)}
        blank = [row | nothing if row["path"] == "cat/black.png" else row for row in rows]
        store.write_shard(0, blank, store.read_thumbnails(0))
        write_report("out")
    return folder / "out"


@pytest.fixture
def seen(browser: Browser, made: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1300, "height": 800})
    found = Page(context.new_page())
    found.page.goto(made.joinpath("report.html").as_uri())
    yield found
    assert found.problems == []
    assert [url for url in found.requests if not url.startswith(("file:", "data:"))] == []
    context.close()
