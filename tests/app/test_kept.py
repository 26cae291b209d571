"""How long the app keeps what the model found in a picture, and what it says afterwards."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest

from gradcam_kit.app import page
from gradcam_kit.app.views import AppModel
from gradcam_kit.jobs import ModelRequest


@pytest.fixture
def shown() -> Any:
    """The page on a Gradio that only remembers its calls."""
    gradio = MagicMock()
    for kind in (gradio.State, gradio.Markdown):
        kind.side_effect = lambda *values, **options: MagicMock()
    return page._Page(gradio, AppModel.load(ModelRequest("demo", device="cpu")))


def test_what_sessions_keep_has_an_end(shown: Any) -> None:
    calls = shown.gr.State.call_args_list
    assert [call.args for call in calls] == [(None,), ((),), (None,)]
    assert [call.kwargs for call in calls] == [{"time_to_live": page._KEPT}] * 3


@pytest.mark.parametrize(("target", "said"), [(3, [page._GONE, None]), (None, [None])])
def test_a_picture_that_is_gone_is_said_and_no_other_message_replaced(shown: Any, target: Any, said: Any) -> None:
    updates = list(shown.explain(None, target, ["grad-cam"], "", "", 0.5, None))
    assert [update.get(shown.message) for update in updates] == [text and page.escaped(text) for text in said]
    assert updates[-1][shown.maps] == ()
