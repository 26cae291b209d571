"""The dashboard, as a person sees it in a browser while a training writes; nothing else is asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import Page
from trainings import batches, mlp
from werkzeug.serving import make_server

from gradcam_kit.diagnostics import JsonWriter, ModelDiagnostics, capture_features, dashboard
from gradcam_kit.diagnostics.show.log import Log
from gradcam_kit.errors import InputError, OptionError

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


def test_a_log_is_read_while_it_grows(tmp_path: Path) -> None:
    log, writer = Log(tmp_path), JsonWriter(tmp_path)
    assert not log.update()
    writer.scalar("loss", 1.0, 1)
    assert log.update()
    assert not log.update()
    with (tmp_path / "diagnostics.jsonl").open("a") as stream:
        stream.write('{"kind": "scalar", "name": "loss", "step": 2, ')
    log.update()
    assert log.scalars == {"loss": [(1, 1.0)]}  # half a line is no line
    with (tmp_path / "diagnostics.jsonl").open("a") as stream:
        stream.write('"value": null}\nnot json\n{"kind": "other", "name": "a", "step": 1}\n[]\n')
    log.update()
    assert log.scalars == {"loss": [(1, 1.0), (2, None)]}
    assert log.unread == 3
    for step in range(5000):
        writer.scalar("many", step, step)
    log.update()
    assert len(log.scalars["many"]) <= 2000
    assert log.scalars["many"][-1] == (4999, 4999.0)
    assert log.scalars["many"][0] == (0, 0.0)
    (tmp_path / "diagnostics.jsonl").write_text('{"kind": "scalar", "name": "new", "step": 1, "value": 1}\n')
    log.update()
    assert list(log.scalars) == ["new"]  # begun anew


def test_pictures_outside_of_the_folder_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    log = Log(tmp_path / "logs")
    assert log.picture("../secret.png") is None
    assert log.picture(str(tmp_path / "secret.png")) is None
    (tmp_path / "logs" / "link.png").symlink_to(tmp_path / "secret.png")
    assert log.picture("link.png") is None
    (tmp_path / "logs" / "own.png").write_bytes(b"own")
    assert log.picture("own.png") == b"own"


def test_wrong_sources_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("dash", reason="dash is not installed: pip install -e .[dashboard]")
    with pytest.raises(InputError, match="nothing to show"):
        dashboard()
    with pytest.raises(InputError, match="cannot show a dict"):
        dashboard({})
    with pytest.raises(InputError, match="there is no folder"):
        dashboard(tmp_path / "none")
    with pytest.raises(OptionError, match="refresh is 0"):
        dashboard(tmp_path, refresh=0)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, Any]]:
    pytest.importorskip("dash", reason="dash is not installed: pip install -e .[dashboard]")
    model = mlp()
    with capture_features(model, "1") as features:
        model(torch.rand(3, 16))
    app = dashboard(tmp_path, features, refresh=0.5)
    server = make_server("127.0.0.1", 0, app.server, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path, app
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_panel_follows_a_training(browser: Any, served: tuple[str, Path, Any]) -> None:
    address, folder, _ = served
    seen = Page(browser.new_page(viewport={"width": 1200, "height": 900}))
    seen.page.goto(address)
    seen.page.get_by_text("No report yet.").wait_for()
    model = mlp()
    torch.nn.init.constant_(model[0].bias, -100.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    writer = JsonWriter(folder)
    writer.image(HOSTILE, np.full((8, 8, 3), 99, np.uint8), 1)
    with ModelDiagnostics(model, optimizer=optimizer, window=4, writer=writer):
        for step, (inputs, labels) in enumerate(batches(14)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            if step == 9:  # in the middle of the training
                seen.page.locator(".bad", has_text="dead in 1").first.wait_for()
                seen.page.locator("#curve .gtitle").wait_for()
    seen.page.locator("#layers td", has_text="Linear").first.wait_for()
    assert seen.page.locator("#profile .gtitle").text_content().startswith("Layers")
    seen.page.locator("#ridges .hm image").first.wait_for()
    assert seen.page.locator("#pictures img").get_attribute("src").startswith("data:image/png")
    assert seen.page.locator("#maps img").get_attribute("alt") == "feature maps of 1, sample 0"
    assert seen.page.title() == "Diagnostics"
    assert [url for url in seen.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert [text for text in seen.problems if "favicon" not in text] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_it_is_for_this_machine_alone(served: tuple[str, Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    app = served[2]
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setattr(app.server, "run", lambda host, port, **options: asked.update(host=host, port=port))
    app.run()
    assert asked["host"] == "127.0.0.1"


def test_reports_need_no_folder() -> None:
    pytest.importorskip("dash", reason="dash is not installed: pip install -e .[dashboard]")
    model = mlp()
    with ModelDiagnostics(model) as diagnostics:
        model(torch.rand(4, 16))
    for source in (diagnostics, diagnostics.report()):
        layout = json.dumps(dashboard(source).layout.to_plotly_json(), default=lambda one: one.to_plotly_json())
        assert '"hidden": true' in layout
