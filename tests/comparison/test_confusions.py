"""Confused pairs: counts, mean heatmaps and examples by hand, one pass per batch, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import CONTRAST, WINDOWS, Page
from models import tiny
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit import GradCAM, analyze_mistakes
from gradcam_kit.errors import InputError, OptionError, ShapeError, UnknownNameError

HOSTILE = "<img src=x onerror=\"document.title='owned'\">{{ 7*7 }}"


def data(n: int = 20, classes: int = 5, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, size, size, generator=generator) + 2 * torch.randn(n, 3, 1, 1, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return list(zip(images.split(8), labels.split(8), strict=True))


def test_pairs_means_and_examples_are_those_by_hand() -> None:
    model, batches = tiny(), data()
    found = analyze_mistakes(model, batches, target_layers="relu2", class_names=list("abcde"), examples=2)
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    with torch.no_grad():
        scores = model(images).softmax(1)
    predicted = scores.argmax(1)
    maps = GradCAM(model, "relu2")(images).unflatten(1, (32, 2)).unflatten(3, (32, 2)).mean((2, 4)).numpy()
    assert found.n == 20
    assert found.wrong == int((predicted != labels).sum())
    assert found.accuracy == pytest.approx(float((predicted == labels).float().mean()))
    assert found.layers == ("relu2",)
    expected = torch.zeros(5, 5, dtype=torch.long)
    expected.index_put_((labels, predicted), torch.ones(20, dtype=torch.long), accumulate=True)
    assert torch.equal(found.confusion, expected)
    assert [pair.count for pair in found.pairs] == sorted((pair.count for pair in found.pairs), reverse=True)

    def mean(label: int, of: int) -> Any:
        own = ((labels == label) & (predicted == of)).numpy()
        return maps[own].mean(0) if own.any() else None

    for pair in found.pairs:
        np.testing.assert_allclose(pair.heatmap, mean(pair.label, pair.predicted), atol=1e-5)
        for own, label in ((pair.label_heatmap, pair.label), (pair.predicted_heatmap, pair.predicted)):
            assert (own is None) == (mean(label, label) is None)
            if own is not None:
                np.testing.assert_allclose(own, mean(label, label), atol=1e-5)
        whose = ((labels == pair.label) & (predicted == pair.predicted)).nonzero()[:, 0].tolist()
        surest = sorted(whose, key=lambda i, p=pair: -float(scores[i, p.predicted]))[:2]
        assert [one.index for one in pair.examples] == surest
        first = pair.examples[0]
        assert first.score == pytest.approx(float(scores[first.index, pair.predicted]), abs=1e-5)
        assert first.label_score == pytest.approx(float(scores[first.index, pair.label]), abs=1e-5)
        assert first.picture.shape == (64, 64, 3)
        assert pair.share == pytest.approx(pair.count / int((labels == pair.label).sum()))
        assert pair.label_name == "abcde"[pair.label]


def test_one_pass_for_each_batch_and_nothing_is_changed() -> None:
    model, batches = tiny().train(), data(16)
    calls: list[int] = []
    hook = model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    cam = GradCAM(model, "relu2")
    with unchanged(model, batches[0][0]):
        analyze_mistakes(model, batches, cam)
        with pytest.raises(RuntimeError):
            analyze_mistakes(model, [*batches, (torch.zeros(2, 4, 9, 9), torch.zeros(2).long())], cam)
    hook.remove()
    assert calls[:2] == [8, 8]
    assert len(calls) <= 5


def test_one_output_and_other_methods_and_sizes() -> None:
    model = tiny(classes=1)
    batches = [(torch.randn(6, 3, 16, 24), torch.tensor([0.0, 1, 0, 1, 0, 1])[:, None])]
    found = analyze_mistakes(model, batches, "eigen-cam")
    with torch.no_grad():
        expected = (model(batches[0][0])[:, 0] > 0).long()
    assert found.wrong == int((expected != batches[0][1][:, 0]).sum())
    assert found.classes == 2
    assert found.method == "eigen-cam"
    for pair in found.pairs:
        for one in pair.examples:
            assert one.heatmap.shape == (16, 24)
            assert one.score + one.label_score == pytest.approx(1)
    right = analyze_mistakes(model, [(batches[0][0], expected)], GradCAM)
    assert (right.wrong, right.accuracy, right.pairs) == (0, 1, ())
    assert "Every image is predicted right." in right.to_html()


@pytest.mark.parametrize(
    ("loader", "options", "error", "message"),
    [
        ([], {}, InputError, "the loader yields nothing"),
        ([torch.zeros(2, 3, 16, 16)], {}, InputError, "without labels"),
        ([{"x": 1}], {}, InputError, "gives a mapping with keys 'x'"),
        ([(torch.zeros(2, 3, 16, 16), torch.zeros(3).long())], {}, ShapeError, "2 images and 3 labels"),
        ([(torch.zeros(2, 3, 16, 16), torch.eye(2))], {}, InputError, "labels of shape .*argmax"),
        ([(torch.zeros(2, 3, 16, 16), torch.tensor([0, 5]))], {}, InputError, "labels go from 0 to 5, .* 0 to 4"),
        ([(torch.zeros(2, 3, 16, 16), torch.tensor([0.5, 1]))], {}, InputError, "the labels are fractions"),
        ([(torch.zeros(2, 3, 16, 16), ["cat", "dog"])], {}, InputError, "labels as a list"),
        (data(8), {"cam": "grad-kam"}, UnknownNameError, "no method 'grad-kam'"),
        (data(8), {"cam": "random"}, InputError, "'random' is a baseline"),
        (data(8), {"examples": -1}, OptionError, "examples is -1"),
    ],
)
def test_bad_input_is_one_line(loader: Any, options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        analyze_mistakes(tiny(), loader, **options)
    assert "\n" not in str(caught.value)


def test_rows_and_text() -> None:
    found = analyze_mistakes(tiny(), data(), class_names=[HOSTILE, *"bcde"])
    assert found.table.shape == (len(found.pairs), 7)
    assert str(found).startswith(f"Incorrect predictions: {found.wrong} of 20 images")
    assert "&lt;img" in found._repr_html_()
    page = found.to_html()
    assert "<img src=x" not in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(("width", "height", "scheme"), WINDOWS)
def test_the_page_fits_a_screen_and_a_phone(browser: Any, width: int, height: int, scheme: Any, tmp_path: Path) -> None:
    names = [HOSTILE, "a_very_long_name_of_a_class_without_any_place_to_break" * 2, *"cde"]
    path = analyze_mistakes(tiny(), data(), class_names=names).to_html(tmp_path / "mistakes.html")
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    seen = Page(context.new_page())
    seen.page.goto(path.as_uri())
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert seen.page.title().startswith("TinyCNN: ")
    for selector in (".about", ".bars a", ".taken", ".arrow", ".count", "h3", "figcaption", "figcaption small"):
        for element in seen.page.locator(selector).all()[:3]:
            assert element.evaluate(CONTRAST) >= 4.5, selector
    assert seen.page.locator(".stack .heatmap").first.evaluate("image => image.naturalWidth") == 64
    seen.page.locator("#opacity").press("Home")
    assert seen.page.locator(".stack .heatmap").first.evaluate("image => getComputedStyle(image).opacity") == "0"
    seen.page.locator(".bars a").first.click()
    assert seen.page.url.endswith("#pair-1")
    assert seen.problems == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []


def test_models_without_positions_of_their_own() -> None:
    signals = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    found = analyze_mistakes(signals, [(torch.randn(6, 2, 50), torch.arange(6) % 3)])
    assert found.n == 6
    assert "stack" in found.to_html()
