"""From a picture and choices to maps, tables and code; nothing here needs Gradio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gradcam_kit import GradCAM, overlay
from gradcam_kit.app import uploads, views
from gradcam_kit.app.state import Choice, check, chosen_target, escaped, explain, method_choices, paint, summary
from gradcam_kit.app.uploads import PictureSource, read_upload
from gradcam_kit.app.views import AppModel, look
from gradcam_kit.demo import sample_pictures
from gradcam_kit.errors import ClassIndexError, InputError, PictureError
from gradcam_kit.jobs import ModelRequest
from gradcam_kit.methods import METHODS, BaseCAM
from gradcam_kit.targets import DetectionTarget

PICTURE = sample_pictures()[0].picture
SOURCE = PictureSource("disc", "sample_pictures()[0].picture", "from gradcam_kit.demo import sample_pictures")


@pytest.fixture(scope="module")
def demo() -> AppModel:
    return AppModel.load(ModelRequest("demo", device="cpu"))


@pytest.fixture(scope="module")
def boxes() -> AppModel:
    return AppModel.load(ModelRequest("small_detector:detector", device="cpu"))


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "recipe", "exec"), names)
    return names


def test_a_view_has_the_top_classes_and_then_all_others(demo: AppModel) -> None:
    view = look(demo, PICTURE, SOURCE)
    images = demo.loaded.transform(PICTURE)[None]
    with torch.no_grad():
        shares = demo.model(images).softmax(1)[0]
    assert [one.target for one in view.targets] == [
        place for place in shares.argsort(descending=True)[:5].tolist() if shares[place] >= views.LEAST_SHARE
    ]
    assert 1 < len(view.targets) < 5  # of this picture some of the five are improbable
    assert view.targets[0].score == pytest.approx(float(shares.max()))
    assert view.targets[0].name == "disc"
    choices = view.target_choices(demo)
    assert choices[0] == (f"disc, {float(shares.max()):.1%}", int(shares.argmax()))
    assert sorted(value for _, value in choices) == list(range(len(shares)))
    assert view.bars() == {one.name: one.target for one in view.targets}
    (automatic, value), *others = view.layer_choices()
    chosen = next(iter(GradCAM(demo.model).explain(images).layers))
    assert (automatic, value) == (f"automatic ({chosen})", "")
    assert "layer3" in [name for _, name in others]
    assert others[-1][1] == view.layers[0].name  # the deepest comes first


@pytest.mark.parametrize(("method", "layer"), [("grad-cam", ""), ("grad-cam", "layer3"), ("full-grad", "layer3")])
def test_the_code_makes_this_very_map(demo: AppModel, method: str, layer: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    view = look(demo, PICTURE, SOURCE)
    [found] = explain(demo, view, Choice(3, (method,), layer))
    assert found.error == ""
    assert found.code is not None
    names = run(found.code(0.25))
    assert torch.equal(names["explanation"].heatmaps[0], found.heatmap)
    assert names["explanation"].layers == found.layers
    assert np.array_equal(names["overlay"], paint(view, found, 0.25))
    assert Path(f"{method}.png").is_file()
    assert capsys.readouterr().out.strip() == check(view, found).check


def test_methods_stand_side_by_side_with_their_cost(demo: AppModel) -> None:
    view = look(demo, PICTURE, SOURCE)
    cheap, dear = explain(demo, view, Choice(0, ("grad-cam", "score-cam")))
    assert cheap.cost.split(", ")[1] == "1.0 forward passes"
    assert float(dear.cost.split(", ")[1].split()[0]) > 10
    assert summary(cheap).startswith(f"`{cheap.layers[0]}` · ")
    assert np.array_equal(paint(view, cheap, 0.0), PICTURE)
    assert np.array_equal(paint(view, cheap, 0.5), overlay(PICTURE, cheap.heatmap))


def test_a_method_that_fails_says_why_and_the_next_goes_on(demo: AppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Exits(BaseCAM):
        def saliency(self, layer):
            raise SystemExit(3)

    class Breaks(BaseCAM):
        def saliency(self, layer):
            raise ZeroDivisionError("by\n<b>nothing</b>")

    monkeypatch.setitem(METHODS, "exits", Exits)
    monkeypatch.setitem(METHODS, "breaks", Breaks)
    view = look(demo, PICTURE, SOURCE)
    exits, breaks, attention, good = explain(
        demo, view, Choice(0, ("exits", "breaks", "attention-rollout", "grad-cam"))
    )
    assert "sys.exit(3)" in exits.error
    assert breaks.error == "ZeroDivisionError: by <b>nothing</b>"
    assert "<b>" not in summary(breaks)
    assert attention.error
    assert paint(view, attention, 0.5) is None
    assert (good.error, check(view, exits).check) == ("", "")


def test_a_gradient_rule_goes_to_the_methods_that_have_it(demo: AppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ruled(BaseCAM):
        gradient_rule: str = "exact"

        def saliency(self, layer):
            return layer.activations.sum(1)

    monkeypatch.setitem(METHODS, "ruled", Ruled)
    view = look(demo, PICTURE, SOURCE)
    [given] = explain(demo, view, Choice(0, ("ruled",), gradient_rule="balanced"))
    [own] = explain(demo, view, Choice(0, ("ruled",)))
    assert given.cam is not None
    assert given.cam.gradient_rule == "balanced"
    assert "gradient_rule='balanced'" in given.code(0.5)
    assert "gradient_rule" not in own.code(0.5)


def test_an_empty_map_is_told(demo: AppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(BaseCAM):
        def saliency(self, layer):
            return -layer.activations.abs().sum(1)

    monkeypatch.setitem(METHODS, "nothing", Nothing)
    [found] = explain(demo, look(demo, PICTURE, SOURCE), Choice(0, ("nothing",)))
    assert found.is_empty
    assert "No positive evidence" in summary(found)


def test_boxes_lie_on_the_picture_and_can_be_clicked(boxes: AppModel) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)  # the model sees 32 x 32, so boxes grow 4 times as wide, twice as high
    picture[20:40, 80:100] = 255
    view = look(boxes, picture, SOURCE)
    assert view.is_detector
    assert [one.name for one in view.targets] == ["right", "left"]  # the bright half first
    assert [one.box for one in view.targets] == [(72, 8, 120, 56), (8, 8, 56, 56)]
    assert [label.split(",")[0] for label, _ in view.target_choices(boxes)] == ["1. right", "2. left"]
    assert list(view.bars().items()) == [("1. right", 0), ("2. left", 1)]
    assert (view.box_at(80, 30), view.box_at(20, 30), view.box_at(64, 30)) == (0, 1, None)


def test_the_code_of_a_box_makes_this_very_map(boxes: AppModel, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    view = look(boxes, PICTURE, SOURCE)
    [found] = explain(boxes, view, Choice(1, ("grad-cam",), "layer"))
    assert found.code is not None
    names = run(found.code(0.5))
    assert isinstance(names["target"], DetectionTarget)
    assert torch.equal(names["explanation"].heatmaps[0], found.heatmap)
    [other] = explain(boxes, view, Choice(0, ("grad-cam",), "layer"))
    assert not torch.equal(other.heatmap, found.heatmap)


def test_weak_boxes_are_shown_with_a_note(boxes: AppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LEAST_SCORE", 0.99)
    view = look(boxes, PICTURE, SOURCE)
    assert len(view.targets) == 2
    assert view.notes == ("no box scores above 99%; showing the best 2",)


def test_the_first_class_is_shown_however_improbable(demo: AppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LEAST_SHARE", 1.1)
    assert [one.name for one in look(demo, PICTURE, SOURCE).targets] == ["disc"]


def test_a_class_or_a_box_that_there_is_not_is_refused(demo: AppModel, boxes: AppModel) -> None:
    for model, count in ((demo, 99), (boxes, 2), (demo, -1)):
        with pytest.raises(ClassIndexError, match="there is no"):
            chosen_target(model, look(model, PICTURE, SOURCE), count)


def test_models_of_other_kinds_and_models_that_fail_say_so() -> None:
    class Fails(nn.Module):
        def forward(self, images):
            raise RuntimeError("out of ideas")

    dense = AppModel.load(ModelRequest(nn.Conv2d(3, 4, 1), device="cpu"))
    with pytest.raises(InputError, match="the app explains classifiers and detectors"):
        look(dense, PICTURE, SOURCE)
    with pytest.raises(RuntimeError, match="out of ideas"):
        look(AppModel.load(ModelRequest(Fails(), device="cpu")), PICTURE, SOURCE)


def test_uploads_are_read_whole_or_refused_with_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, broken, cut = tmp_path / "it's.png", tmp_path / "notes.png", tmp_path / "cut.png"
    Image.fromarray(PICTURE).save(good)
    picture, source = read_upload(good)
    assert np.array_equal(picture, PICTURE)
    assert source.expression == """read_picture("it's.png")"""
    broken.write_text("no picture")
    cut.write_bytes(good.read_bytes()[:200])
    for path in (broken, cut, tmp_path / "gone.png"):
        with pytest.raises(PictureError, match=f"cannot read '{path.name}'"):
            read_upload(path)
    monkeypatch.setattr(uploads, "MOST_PIXELS", PICTURE.shape[0] * PICTURE.shape[1] - 1)
    with pytest.raises(PictureError, match="million pixels"):
        read_upload(good)


def test_a_large_picture_is_shown_small_and_explained_whole(demo: AppModel) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (900, 1800, 3), np.uint8)
    view = look(demo, picture, SOURCE)
    assert view.shown.shape == (384, 768, 3)
    kept = [value for value in vars(view).values() if isinstance(value, np.ndarray | torch.Tensor)]
    assert len(kept) == 2
    assert sum(value.nbytes for value in kept) < picture.nbytes / 2  # each session keeps its view
    x0, y0, x1, y1 = demo.loaded.transform.box(900, 1800)
    assert view.seen == pytest.approx((x0 * 768 / 1800, y0 * 384 / 900, x1 * 768 / 1800, y1 * 384 / 900))


def test_all_methods_are_offered_those_of_one_pass_first() -> None:
    names = [name for _, name in method_choices()]
    assert sorted(names) == sorted(METHODS)
    assert names.index("grad-cam") < names.index("score-cam")
    assert ("score-cam  (F + k R)", "score-cam") in method_choices()


def test_texts_of_others_are_no_markup() -> None:
    shown = escaped("<img src=x onerror=alert(1)> [a](javascript:b) **c**\n# d")
    assert not set(shown) & set("<>[]*")
    assert "\n" not in shown
