"""compare() with metrics: values of the metrics themselves, and baselines beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import TinyCNN, build, seeded, tiny
from models import images as draw_images

from gradcam_kit import GradCAM, compare
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import OptionError
from gradcam_kit.metrics import BASELINES, METRICS, MetricInput


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
        assert said["before"].startswith("Average drop ")


def test_baselines_beside_methods_of_another_model_are_about_the_model_itself(batch):
    ours, theirs, x = tiny(), seeded(TinyCNN(), 3), batch.images[:, :, ::4, ::4]
    for targets, classes in ((None, ours(x).argmax(1)), (1, torch.ones(3, dtype=torch.long))):
        found = compare(ours, x, [GradCAM(theirs, "relu2"), "edges"], targets=targets, metrics=["deletion"], cost=False)
        expected = ours(x).softmax(1)[torch.arange(3), classes].tolist()
        table = found.table.set_index("method")
        assert table.loc["edges", "score"].tolist() == pytest.approx(expected, rel=1e-4)
        assert found.scores.tolist() == pytest.approx(expected, rel=1e-4)
        with rescoring(ours, x, classes) as rescore:
            deleted = METRICS["deletion"](MetricInput(BASELINES["edges"](x), x, rescore)).values.tolist()
        assert table.loc["edges", "deletion"].tolist() == pytest.approx(deleted, rel=1e-3)


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


def test_every_metric_that_needs_no_mask_can_be_asked_for(model, batch):
    names = [name for name, metric in METRICS.items() if "masks" not in metric.needs]
    found = compare(model, batch.images[:1, :, ::2, ::2], ["grad-cam"], metrics=names[:4], cost=False)
    assert set(names[:4]) <= set(found.table.columns)


def test_a_number_without_meaning_is_no_number_in_the_table() -> None:
    model, images = tiny(), draw_images(2)
    table = compare(model, images, ["grad-cam", "ones"], "relu2", metrics=["average-drop"]).table
    ones = table[table["method"] == "ones"]
    assert ones["average-drop"].isna().all()
    assert set(ones["average-drop status"]) == {"degenerate_map"}
    others = table[table["method"] == "grad-cam"]
    assert (others["average-drop"].notna() == (others["average-drop status"] == "ok")).all()


def test_means_come_with_their_direction_and_all_they_depend_on(model, batch):
    images = batch.images[:1, :, ::2, ::2]
    found = compare(model, images, ["grad-cam", "random"], metrics=["average-drop", "deletion"], cost=False)
    drop, deletion = found.notes
    assert drop.startswith("average-drop: lower is better, score ClassProbability, classes predicted")
    chosen = compare(model, images, "grad-cam", targets=1, metrics="average-drop", cost=False)
    assert "classes given" in chosen.notes[0]
    assert "baseline value 0" in deletion
    assert "steps 216" in deletion  # of 19 positions each
    assert drop in found.page()
