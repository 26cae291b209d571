"""How long the app keeps what the model found in a picture, and what it says afterwards."""

from __future__ import annotations

import pytest

from gradcam_kit.app import page
from gradcam_kit.app.views import AppModel
from gradcam_kit.jobs import ModelRequest


def test_what_sessions_keep_has_an_end() -> None:
    gradio = pytest.importorskip("gradio")
    shown = page._Page(gradio, AppModel.load(ModelRequest("demo", device="cpu")))
    states = [block for block in shown.blocks.blocks.values() if isinstance(block, gradio.State)]
    assert [state.value for state in states] == [None, (), None]
    assert {state.time_to_live for state in states} == {page._KEPT}
    said = [update.get(shown.message) for update in shown.explain(None, 3, ["grad-cam"], "", "", 0.5, None)]
    assert said == [page._GONE, None]
    said = [update.get(shown.message) for update in shown.explain(None, None, ["grad-cam"], "", "", 0.5, None)]
    assert said == [None]  # the reason why there is no picture stays
