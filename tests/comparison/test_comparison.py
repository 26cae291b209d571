"""compare(): the numbers are those of separate calls; what is shown is whole, escaped and in place."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from models import TinyCNN, build, seeded, tiny
from models import images as draw_images
from PIL import Image
from torch import nn

from gradcam_kit import METHODS, GradCAM, LayerCAM, compare
from gradcam_kit.capture import rescoring
from gradcam_kit.demo import HELD_OUT, collate, draw, load_demo_model
from gradcam_kit.errors import InputError, OptionError, PictureError, ShapeError, UnknownNameError
from gradcam_kit.metrics import BASELINES, METRICS, MetricInput

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def batch():
    return collate([draw(HELD_OUT + i) for i in range(3)])


@pytest.fixture(scope="module")
def model():
    return load_demo_model()


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


def test_table_has_a_row_per_image_target_and_method(model, batch):
    found = compare(
        model, batch.images, ["grad-cam", "random"], targets=[[0, 1]] * 3, metrics="average-drop", names=["a", "b", "c"]
    )
    assert found.heatmaps["grad-cam"].shape == found.heatmaps["random"].shape == (3, 2, 128, 128)
    table = found.table
    assert list(table["image"]) == [name for name in "abc" for _ in range(4)]
    assert list(table["method"]) == ["grad-cam", "random"] * 6
    assert list(table["target_name"]) == ["disc", "disc", "ring", "ring"] * 3
    assert list(table["target"]) == [0, 0, 1, 1] * 3
    of_ring = compare(model, batch.images, "grad-cam", targets=1, metrics=["average-drop"]).table
    ours = table[(table["method"] == "grad-cam") & (table["target"] == 1)]
    np.testing.assert_allclose(ours["average-drop"], of_ring["average-drop"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours["score"], of_ring["score"], rtol=1e-5)


def test_metrics_are_those_of_the_metric_itself(model, batch):
    found = compare(
        model, batch.images, ["grad-cam", "center"], metrics=["energy-pointing-game", "coherency"], masks=batch.masks
    )
    maps = found.heatmaps["grad-cam"]
    share = (maps * batch.masks).sum((1, 2)) / maps.sum((1, 2))
    torch.testing.assert_close(found.measured["grad-cam"]["energy-pointing-game"].values, share)
    summary = found.summary
    assert summary.loc["grad-cam", "energy-pointing-game"] == pytest.approx(float(share.mean()))
    assert summary.loc["center", "energy-pointing-game n"] == 3
    again = GradCAM(model)(batch.images * maps[:, None], found.targets)
    a, b = (one.flatten(1).double() for one in (again, maps))
    expected = [(np.corrcoef(x, y)[0, 1] + 1) / 2 for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(found.table.query("method == 'grad-cam'")["coherency"], expected, rtol=1e-4)


def test_one_metric_needs_no_list(model, batch):
    for metric in ("sparseness", METRICS["sparseness"]):
        found = compare(model, batch.images[:1], "grad-cam", metrics=metric, cost=False, baselines=False)
        assert list(found.measured["grad-cam"]) == ["sparseness"]


def test_undefined_metrics_are_nan_and_do_not_count(model, batch):
    masks = batch.masks.clone()
    masks[1] = False
    found = compare(model, batch.images, ["grad-cam"], metrics="energy-pointing-game", masks=masks)
    assert found.table["energy-pointing-game"].isna().tolist() == [False, True, False]
    assert found.summary.loc["grad-cam", "energy-pointing-game n"] == 2


def test_methods_of_another_model_are_scored_and_measured_by_their_own(batch):
    ours, theirs = tiny(), seeded(TinyCNN(), 3)
    x, sample_index = batch.images, torch.arange(len(batch.images))
    classes = ours(x).argmax(1)
    assert not torch.equal(theirs(x).argmax(1), classes)
    methods = {"after": GradCAM(theirs, "relu2"), "before": GradCAM(ours, "relu2")}
    for order in (methods, dict(reversed(methods.items()))):
        found = compare(ours, x, order, metrics=["average-drop"], baselines=False)
        assert torch.equal(found.targets, classes)  # those that the model predicts, for all
        table = found.table.set_index(["method", "image"])
        for label, model in (("before", ours), ("after", theirs)):
            expected = model(x).softmax(1)[sample_index, classes].tolist()
            assert table.loc[label, "score"].tolist() == pytest.approx(expected, rel=1e-4)
            heatmaps = GradCAM(model, "relu2")(x, classes)
            torch.testing.assert_close(found.heatmaps[label], heatmaps)
            with rescoring(model, x, classes) as rescore:
                dropped = METRICS["average-drop"](MetricInput(heatmaps, x, rescore)).values.tolist()
            assert table.loc[label, "average-drop"].tolist() == pytest.approx(dropped, rel=1e-3)
        panel = found.panels()[0]
        said = {cell.title: cell.notes[0] for cell in panel.cells}
        assert panel.note.endswith(f", {ours(x).softmax(1)[0, classes[0]]:.0%}")
        assert said["after"].endswith(f", {theirs(x).softmax(1)[0, classes[0]]:.0%}")
        assert said["before"].startswith("average-drop")


def test_baselines_beside_methods_of_another_model_are_about_the_model_itself(batch):
    ours, theirs, x = tiny(), seeded(TinyCNN(), 3), batch.images
    for targets, classes in ((None, ours(x).argmax(1)), (1, torch.ones(3, dtype=torch.long))):
        found = compare(ours, x, [GradCAM(theirs, "relu2"), "edges"], targets=targets, metrics=["deletion"], cost=False)
        expected = ours(x).softmax(1)[torch.arange(3), classes].tolist()
        table = found.table.set_index("method")
        assert table.loc["edges", "score"].tolist() == pytest.approx(expected, rel=1e-4)
        assert found.scores.tolist() == pytest.approx(expected, rel=1e-4)
        with rescoring(ours, x, classes) as rescore:
            deleted = METRICS["deletion"](MetricInput(BASELINES["edges"](x), x, rescore)).values.tolist()
        assert table.loc["edges", "deletion"].tolist() == pytest.approx(deleted, rel=1e-3)


def test_methods_that_look_at_no_class_are_compared_whatever_the_models_return(batch):
    def outputs(m, x):
        maps = m.layer(x)
        return {"a": maps.relu(), "b": maps}

    models = [build(outputs, layer=nn.Conv2d(3, 4, 3)) for _ in range(3)]
    cams = {str(place): METHODS["eigen-cam"](one, "layer") for place, one in enumerate(models)}
    found = compare(models[0], batch.images, cams)
    torch.testing.assert_close(found.heatmaps["0"], found.heatmaps["2"])
    assert found.heatmaps["1"].any()


@pytest.mark.parametrize("targets", [None, [[0, 1], [2, 3], [4, 0]]], ids=["n", "nm"])
def test_metrics_give_the_model_all_of_its_inputs(batch, targets):
    body = tiny()
    model = build(lambda m, image, shift: m.body(image + shift), body=body)
    body.load_state_dict(tiny().state_dict())
    x = batch.images
    shift = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    asked = {"metrics": ["deletion", "coherency"], "target_layers": "body.relu1", "baselines": False, "cost": False}
    found = compare(model, {"image": x, "shift": shift}, ["grad-cam"], targets=targets, **asked)
    classes = found.targets.flatten()
    whose = torch.arange(3).repeat_interleave(len(classes) // 3)
    case = {
        "heatmaps": found.heatmaps["grad-cam"].reshape(-1, *x.shape[2:]),
        "images": x[whose],
        "explain": lambda rows: GradCAM(model, "body.relu1")({"image": rows, "shift": shift[whose]}, classes),
    }
    with rescoring(model, {"image": x[whose], "shift": shift[whose]}, classes) as rescore:
        expected = {name: METRICS[name](MetricInput(**case, rescore=rescore)).values for name in asked["metrics"]}
    for name, values in expected.items():
        assert found.table[name].tolist() == pytest.approx(values.tolist(), rel=1e-3, nan_ok=True)
    assert len(set(expected["deletion"].tolist())) > 1


def test_the_summary_has_the_baselines_and_the_table_what_was_asked_for(model, batch):
    asked = {"metrics": ["average-drop", "coherency", "sparseness"], "cost": False, "seed": 3}
    found = compare(model, batch.images, ["grad-cam", "edges"], **asked)
    assert list(found.summary.index) == ["grad-cam", "edges", "random", "ones", "center"]
    assert list(found.heatmaps) == list(found.measured) == ["grad-cam", "edges"]
    assert list(found.table["method"]) == ["grad-cam", "edges"] * 3
    assert found.summary.loc["ones", ["average-drop", "average-drop n"]].tolist() == [0, 0]  # constant, so none counts
    as_methods = compare(model, batch.images, ["grad-cam", *BASELINES], **asked)
    assert not as_methods.baselines
    for name in BASELINES:
        np.testing.assert_allclose(found.summary.loc[name], as_methods.summary.loc[name], rtol=1e-5)
    assert "center" in found.page()
    bare = compare(model, batch.images, ["grad-cam"], baselines=False, **asked)
    assert list(bare.summary.index) == ["grad-cam"]
    assert list(compare(model, batch.images, ["grad-cam"], cost=False).summary.index) == ["grad-cam"]


def test_baselines_of_several_targets(model, batch):
    found = compare(model, batch.images, "grad-cam", targets=[[0, 1]] * 3, metrics="average-drop", cost=False)
    assert {name: len(own["average-drop"].values) for name, own in found.baselines.items()} == dict.fromkeys(
        BASELINES, 6
    )


def test_two_metrics_of_one_name(model, batch):
    few, more = (replace(METRICS["deletion"], options={"steps": steps}) for steps in (4, 16))
    with pytest.raises(OptionError, match=r"two different metrics are named 'deletion'.*name='deletion-2'"):
        compare(model, batch.images, "grad-cam", metrics=[few, more])
    both = compare(
        model, batch.images, "grad-cam", metrics=[few, few, replace(more, name="deletion-16")], baselines=False
    )
    steps = [own.settings["steps"] for own in both.measured["grad-cam"].values()]
    assert steps == [4, 16]


def test_baselines_are_methods_too(model, batch):
    found = compare(model, batch.images, list(BASELINES), seed=3)
    for name, baseline in BASELINES.items():
        torch.testing.assert_close(found.heatmaps[name], baseline(batch.images, 3, None))
    assert found.targets is None
    assert found.table["target"].isna().all()


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


@pytest.mark.parametrize("positions", [(40,), (6, 12, 12)])
def test_signals_and_volumes_can_be_shown(positions):
    dims = len(positions)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 4, 3), nn.ReLU(), getattr(nn, f"AdaptiveAvgPool{dims}d")(1), nn.Flatten())
    found = compare(model, torch.randn(2, 2, *positions), ["grad-cam", "eigen-cam"], "0")
    assert found.heatmaps["grad-cam"].shape == (2, *positions)
    assert found._repr_html_().count("data:image/jpeg") == 2 * 3
    assert len(found.plot().axes) == 6


class Reader(HTMLParser):
    """Collects the tags, and complains about those that load something."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_page_needs_nothing_from_outside_and_escapes_names(model, batch):
    evil = '<script>alert("x")</script>'
    found = compare(
        model,
        batch.images,
        {evil: GradCAM(model)},
        names=[evil] * 3,
        class_names=[evil] * 8,
        metrics="average-drop",
    )
    page = Reader()
    page.feed(found._repr_html_())
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    assert evil in page.text
    heatmaps = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    pictures = [re.search(r"url\((.*?)\)", attributes["style"])[1] for tag, attributes in page.tags if tag == "section"]
    assert (len(pictures), len(heatmaps)) == (3, 3)
    for source in pictures + heatmaps:
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (128, 128)
    [slider] = [attributes for tag, attributes in page.tags if tag == "input"]
    assert slider["type"] == "range"
    assert "http" not in found._repr_html_()


def test_long_comparisons_are_cut_in_notebooks_and_whole_in_files(model, batch, tmp_path):
    images = batch.images.repeat(7, 1, 1, 1)
    found = compare(model, images, "grad-cam", cost=False)
    assert "and 5 more images" in found._repr_html_()
    assert found._repr_html_().count("<section") == 16
    found.save(tmp_path / "all.html")
    assert (tmp_path / "all.html").read_text().count("<section") == 21


def test_pictures_have_the_models_normalization_undone(model, batch):
    found = compare(model, batch.images, "grad-cam", cost=False)
    original = np.stack([draw(HELD_OUT + i).picture for i in range(3)])
    assert np.abs(np.stack(found.pictures).astype(int) - original).max() <= 1


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_sheet_and_figure_wrap_many_methods_into_rows(model, batch, tmp_path):
    found = compare(model, batch.images[:2], ["grad-cam"] * 10, cost=False)
    found.save(tmp_path / "sheet.png", columns=6)
    narrow = size(tmp_path / "sheet.png")
    found.save(tmp_path / "wide.png", columns=11)
    wide = size(tmp_path / "wide.png")
    assert narrow[0] < 0.65 * wide[0]
    assert narrow[1] > 1.9 * wide[1]
    figure = found.plot(columns=6)
    shown = [axis for axis in figure.axes if axis.images]
    assert (len(figure.axes), len(shown)) == (2 * 2 * 6, 2 * 11)
    assert shown[0].get_title().startswith("image 0")
    assert [axis.get_title() for axis in shown[1:11]] == list(found.heatmaps)


@pytest.mark.parametrize("suffix", [".html", ".csv", ".png", ".jpg", ".svg"])
def test_save_writes_by_ending(model, batch, tmp_path, suffix):
    found = compare(model, batch.images, ["grad-cam", "eigen-cam"], cost=False)
    path = tmp_path / f"found{suffix}"
    found.save(path)
    begins = {".html": b"<!doctype", ".csv": b"image,method", ".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".svg": b"<?xml"}
    assert path.read_bytes().startswith(begins[suffix])


def test_a_figure_stays_out_of_the_way_of_others(model, batch):
    from matplotlib import pyplot

    mine = pyplot.figure()
    compare(model, batch.images, "grad-cam", cost=False).plot()
    assert pyplot.get_fignums() == [mine.number]
    pyplot.close(mine)


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


def test_an_unknown_ending_is_an_error(model, batch, tmp_path):
    with pytest.raises(PictureError, match="no format for the suffix"):
        compare(model, batch.images, "grad-cam", cost=False).save(tmp_path / "x.what")


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


def test_it_is_loaded_when_used_and_names_the_extra_that_is_missing(tmp_path):
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
        "        print(type(error).__name__, 'gradcam-kit[notebook]' in str(error))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=True,
    )
    assert shown.stdout.splitlines() == ["1", *["MissingExtraError True"] * 2]


def test_every_metric_that_needs_no_mask_can_be_asked_for(model, batch):
    names = [name for name, metric in METRICS.items() if "masks" not in metric.needs]
    found = compare(model, batch.images[:1], ["grad-cam"], metrics=names[:4], cost=False)
    assert set(names[:4]) <= set(found.table.columns)


def test_a_number_without_meaning_is_no_number_in_the_table() -> None:
    model, images = tiny(), draw_images(2)
    table = compare(model, images, ["grad-cam", "ones"], "relu2", metrics=["average-drop"]).table
    ones = table[table["method"] == "ones"]
    assert ones["average-drop"].isna().all()
    assert set(ones["average-drop status"]) == {"degenerate_map"}
    others = table[table["method"] == "grad-cam"]
    assert (others["average-drop"].notna() == (others["average-drop status"] == "ok")).all()


def test_names_of_classes_and_endings_are_told() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'grad-cam'"):
        compare(tiny(), draw_images(1), ["GradCAM"], "relu2")
    with pytest.raises(PictureError, match=r"\.html, \.htm, \.csv"):
        compare(tiny(), draw_images(1), ["grad-cam"], "relu2").save("comparison.foo")


def test_means_come_with_their_direction_and_all_they_depend_on(model, batch):
    found = compare(model, batch.images, ["grad-cam", "random"], metrics=["average-drop", "deletion"], cost=False)
    drop, deletion = found.notes
    assert drop.startswith("average-drop: lower is better, score ClassProbability, classes predicted")
    chosen = compare(model, batch.images, "grad-cam", targets=1, metrics="average-drop", cost=False)
    assert "classes given" in chosen.notes[0]
    assert "baseline value 0" in deletion
    assert "steps 222" in deletion  # of 74 positions each
    assert drop in found.page()
