"""compare(): the heatmaps are those of separate calls, and the model is left as it was."""

from __future__ import annotations

import re
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from models import build, tiny
from models import images as draw_images
from torch import nn

from gradcam_kit import METHODS, GradCAM, LayerCAM, compare
from gradcam_kit.errors import InputError, PictureError, ShapeError, UnknownNameError

ROOT = Path(__file__).parents[2]


class Counted(nn.Module):
    """Counts the images that go through the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        return self.model(images)


def test_heatmaps_are_those_of_separate_calls(model, batch):
    methods = ["grad-cam", "layer-cam", "eigen-cam", "score-cam"]
    found = compare(model, batch.images, methods, "layer3", targets=[0, 1, 2])
    assert list(found.heatmaps) == methods
    for name in methods:
        alone = METHODS[name](model, "layer3")(batch.images, [0, 1, 2])
        torch.testing.assert_close(found.heatmaps[name], alone)
    assert found.targets.tolist() == [0, 1, 2]
    probabilities = model(batch.images).softmax(1)
    torch.testing.assert_close(found.scores, probabilities[range(3), range(3)].detach())


def test_methods_share_one_pass_and_cost_is_measured_on_one_image(model, batch):
    counted = Counted(model)
    compare(counted, batch.images, ["grad-cam", "hires-cam", "layer-cam"], "model.layer4", cost=False)
    assert counted.seen == [3]
    counted.seen.clear()
    compare(counted, batch.images, ["grad-cam", "hires-cam", "layer-cam"], "model.layer4")
    assert counted.seen == [3, 1, 1, 1, 1]  # the last ones: a plain pass to compare with, and each method alone


def test_cost_is_in_forward_passes(model, batch):
    found = compare(model, batch.images, ["lafam", "grad-cam", "score-cam", "random"], "layer4")
    table = found.summary
    assert table.loc["lafam", "passes"] == pytest.approx(1)
    assert table.loc["grad-cam", "passes"] == pytest.approx(1, abs=0.01)  # the gradient has a closed form there
    live = 1 + 96  # channels of layer4
    assert 50 < table.loc["score-cam", "passes"] <= live + 0.1
    assert table.loc["grad-cam", "peak_mb"] > 0.5
    assert table.loc["random", ["seconds", "passes", "peak_mb"]].isna().all()
    assert (table["seconds"].dropna() > 0).all()
    early = compare(model, batch.images, ["grad-cam", "ablation-cam", "score-cam"], "layer3").summary["passes"]
    assert early["grad-cam"] == pytest.approx(1.5, abs=0.02)  # layer4 is half of the arithmetic
    assert early["ablation-cam"] < 0.55 * early["score-cam"]  # runs only what is behind the layer
    assert "passes" not in compare(model, batch.images, ["grad-cam"], cost=False).summary


def test_layers_are_compared_one_by_one_and_nested_ones_are_fused(model, batch):
    layers = ["layer3", model.layer4, ["layer3", "layer4"]]
    found = compare(model, batch.images, [GradCAM, "layer-cam", "full-grad"], layers)
    assert list(found.heatmaps) == [
        *("grad-cam layer3", "grad-cam layer4", "grad-cam layer3+layer4"),
        *("layer-cam layer3", "layer-cam layer4", "layer-cam layer3+layer4"),
        "full-grad",  # takes no target layer
    ]
    fused = LayerCAM(model, ["layer3", "layer4"])(batch.images)
    torch.testing.assert_close(found.heatmaps["layer-cam layer3+layer4"], fused)
    assert set(found.table["layer"]) >= {"layer3", "layer4", "layer3+layer4"}
    assert list(compare(model, batch.images, "grad-cam", ["layer4"]).heatmaps) == ["grad-cam"]
    named = compare(model, batch.images, "grad-cam", {"fine": "layer3", "coarse": "layer4"})
    assert list(named.heatmaps) == ["grad-cam fine", "grad-cam coarse"]


def test_labels_name_objects_with_their_own_options_and_are_distinct(model, batch):
    own = {"mean": LayerCAM(model, ["layer3", "layer4"], fusion="mean"), "max": LayerCAM(model, ["layer3", "layer4"])}
    found = compare(model, batch.images, own)
    for label, cam in own.items():
        torch.testing.assert_close(found.heatmaps[label], cam(batch.images))
    twice = compare(model, batch.images, [GradCAM(model, "layer3"), GradCAM(model, "layer4")])
    assert list(twice.heatmaps) == ["grad-cam", "grad-cam (2)"]


def test_methods_that_look_at_no_class_are_compared_whatever_the_models_return(batch):
    def outputs(m, x):
        maps = m.layer(x)
        return {"a": maps.relu(), "b": maps}

    models = [build(outputs, layer=nn.Conv2d(3, 4, 3)) for _ in range(3)]
    cams = {str(place): METHODS["eigen-cam"](one, "layer") for place, one in enumerate(models)}
    found = compare(models[0], batch.images, cams)
    torch.testing.assert_close(found.heatmaps["0"], found.heatmaps["2"])
    assert found.heatmaps["1"].any()


def test_all_leaves_out_what_does_not_suit(model, batch):
    found = compare(model, batch.images[:1], "all", cost=False)
    assert set(found.left_out) == {"attention-rollout", "generic-attention", "grad-eclip", "legrad"}
    assert "grad-cam" in found.heatmaps
    assert "score-cam" not in found.heatmaps  # needs more than the pass that all share
    assert "attention-rollout" in found._repr_html_()


def test_callable_targets_have_scores_and_no_classes(model, batch):
    found = compare(model, batch.images, ["grad-cam"], targets=lambda logits: logits[:, 0] - logits[:, 1])
    logits = model(batch.images).detach()
    np.testing.assert_allclose(found.table["score"], logits[:, 0] - logits[:, 1], rtol=1e-4)
    assert found.table["target"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"methods": "gradcam"}, UnknownNameError, "did you mean 'grad-cam'"),
        ({"methods": []}, InputError, "no method to compare"),
        ({"metrics": "average-drops"}, UnknownNameError, "did you mean 'average-drop'"),
        ({"metrics": "energy-pointing-game"}, InputError, "pass masks"),
        ({"names": ["a"]}, ShapeError, "1 names for 3 images"),
        ({"images": torch.zeros(0, 3, 128, 128)}, InputError, "no images"),
    ],
)
def test_wrong_requests_say_what_is_wrong(model, batch, arguments, error, says):
    with pytest.raises(error, match=re.escape(says)):
        compare(model, **{"images": batch.images, **arguments})


def test_the_model_is_left_as_it_was(model, batch):
    model.train()
    model.layer4.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    try:
        compare(model, batch.images, ["grad-cam", "random-cam", "ablation-cam"], metrics="average-drop")
        assert [module.training for module in model.modules()] == flags
    finally:
        model.eval()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_it_is_loaded_when_used_and_names_the_extra_that_is_missing(tmp_path, monkeypatch):
    code = (
        "import sys, gradcam_kit\n"
        "assert 'gradcam_kit.comparison' not in sys.modules\n"
        "sys.modules['pandas'] = sys.modules['matplotlib'] = None\n"
        "from gradcam_kit import compare\n"
        "from gradcam_kit.demo import collate, draw, load_demo_model\n"
        "found = compare(load_demo_model(), collate([draw(0)]).images, 'grad-cam', cost=False)\n"
        "found.save('sheet.png'); found.save('page.html'); print(len(found.rows()))\n"
        "for use in (lambda: found.table, found.plot):\n"
        "    try: use()\n"
        "    except gradcam_kit.GradCamKitError as error:\n"
        "        print(type(error).__name__, '.[notebook]' in str(error))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert forked.run(code).stdout.splitlines() == ["1", *["MissingExtraError True"] * 2]


def test_names_of_classes_and_endings_are_told() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'grad-cam'"):
        compare(tiny(), draw_images(1), ["GradCAM"], "relu2")
    with pytest.raises(PictureError, match=r"\.html, \.htm, \.csv"):
        compare(tiny(), draw_images(1), ["grad-cam"], "relu2").save("comparison.foo")
