"""What a call costs: passes, graphs and memory, counted; and that sharing and chunking change no map."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
from evidence import ANY_LAYER, LAYERED, ON_CNNS, ON_TOKENS, Operations, Spy, close, counted, evidence, quick
from models import TinyViT, build, conv_model, images, seeded, tiny
from representatives import crossed, each, representatives
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gradcam_kit import METHODS, EinsumCAM, GradCAM, LayerCAM, ScoreCAM, XGradCAM, explain_all
from gradcam_kit.capture.rerun import rescore as scoring
from gradcam_kit.errors import InputError
from gradcam_kit.methods.engine import engine as sharing
from gradcam_kit.types import Evidence, LayerChoice

INPUT = images(3, size=(8, 8))
FURTHER = Evidence.RESCORE | Evidence.REPLAY | Evidence.PROBE
ONE_PASS = [name for name in ON_CNNS if not METHODS[name].needs & FURTHER]
IN_CHUNKS = [name for name in ON_CNNS if METHODS[name].needs & FURTHER]
NO_GRAPH = [name for name in ONE_PASS if not METHODS[name].needs & Evidence.DERIVATIVES]
TO_THE_LAYER = [name for name in LAYERED if METHODS[name].needs == Evidence.GRADIENTS]


@pytest.mark.parametrize(("name", "classes"), crossed(ONE_PASS, [[[0, 1, 2, 3]] * 3, [0, 1, 2], None]))
def test_one_forward_pass_for_any_number_of_classes(name: str, classes: Any) -> None:
    model = tiny()
    with counted(model.stage1) as passes:
        quick(name)(model, "relu2")(INPUT, classes)
    assert passes == [3]


def test_the_automatic_layer_is_searched_on_one_image_when_the_size_changes() -> None:
    model = tiny()
    cam = GradCAM(model)
    with counted(model.stage1) as passes:
        for x in (INPUT, INPUT, images(2, size=(12, 12)), images(4, size=(12, 12))):
            cam(x)
    assert passes == [1, 3, 3, 1, 2, 4]


# No graph where none is needed


def graphs(model: nn.Module) -> dict[str, list[bool]]:
    """Whether the output of each module belongs to a graph."""
    seen: dict[str, list[bool]] = {name: [] for name, _ in model.named_children()}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, args, output, name=name: seen[name].append(output.requires_grad))
    return seen


@pytest.mark.parametrize("name", each(NO_GRAPH))
def test_no_graph_at_all_for_methods_without_gradients(name: str) -> None:
    model, saved = tiny(), []
    seen = graphs(model)
    with saved_tensors_hooks(saved.append, lambda _: None):
        quick(name)(model, "relu2")(INPUT, [0, 1, 2])
    assert not any(sum(seen.values(), []))  # noqa: RUF017
    assert len(seen["fc"]) == 1
    assert saved == []


@pytest.mark.parametrize("name", each(TO_THE_LAYER))
def test_no_graph_in_front_of_the_layer(name: str) -> None:
    model = tiny()
    seen = graphs(model)
    quick(name)(model, "stage2")(INPUT, [0, 1, 2])
    for in_front in ("stage1", "relu1", "stage2"):  # the hook above runs before that of the capture
        assert not any(seen[in_front])
    assert seen["relu2"][0]
    assert seen["fc"][0]


def test_no_more_is_saved_for_the_backward_pass_than_the_part_behind_the_layer_needs() -> None:
    model, kept = conv_model(), []
    tail = model.layer(model.first(INPUT)).detach().requires_grad_()
    model.requires_grad_(False)
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        model.fc(tail.clone().relu().mean((2, 3))).gather(1, torch.zeros(3, 1).long())[:, 0].sum()
    needed, kept[:] = list(kept), []
    model.requires_grad_(True)
    with saved_tensors_hooks(lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda tensor: tensor):
        GradCAM(model, "layer")(INPUT, [0, 0, 0])
    assert sum(kept) == sum(needed) > 0


@pytest.mark.parametrize("name", each(TO_THE_LAYER))
def test_no_gradient_of_a_parameter_is_computed(name: str) -> None:
    model, reached = tiny(), []
    for parameter in model.parameters():
        parameter.register_hook(reached.append)
    with Operations() as operations:
        quick(name)(model, "relu1")(INPUT, [0, 1, 2])
    convolutions = operations.named("convolution_backward")
    assert len(convolutions) >= 1
    # d output / d input alone: neither weight nor bias, and no convolution in front of the layer.
    assert {tuple(args[-1]) for args in convolutions} == {(True, False, False)}
    assert {tuple(args[2].shape) for args in convolutions} == {tuple(model.stage2.weight.shape)}
    assert reached == []


# Sharing


def test_methods_on_one_model_share_one_forward_and_one_backward_pass() -> None:
    model = tiny()
    cams = [quick(name)(model, "relu2") for name in TO_THE_LAYER if METHODS[name].target_type.__name__ == "ClassLogit"]
    cams += [GradCAM(model, "relu1"), LayerCAM(model, ["stage2", "relu1"]), EinsumCAM(model, "relu2")]
    with counted(model.stage1) as passes, Operations() as shared:
        explain_all(cams, INPUT, [0, 1, 2])
    with Operations() as alone:
        GradCAM(model, "relu1")(INPUT, [0, 1, 2])
    assert passes == [3]
    assert len(shared.named("convolution_backward")) == len(alone.named("convolution_backward")) == 1


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["kinds", "all"])
@pytest.mark.parametrize("classes", [None, [0, 1, 2], [[0, 1], [2, 3], [4, 0]]], ids=["predicted", "one", "two"])
def test_explain_all_equals_separate_calls(classes: Any, whole: bool) -> None:
    model, vit = tiny(), seeded(TinyViT())
    x = images(3)
    chosen = METHODS if whole else representatives()
    cams = [quick(name)(model, "relu2") for name in ON_CNNS if name in chosen]
    cams += [quick(name)(vit) for name in ("grad-cam", "hires-cam", "layer-cam", *ON_TOKENS)]
    cams += [quick(name)(model, "relu1") for name in ANY_LAYER if name in chosen]
    cams += [quick(name)(model, ["stage2", "relu1"], fusion="max") for name in ("grad-cam", "hires-cam", "xgrad-cam")]
    cams += [
        GradCAM(tiny(), "relu2"),
        GradCAM(model, "relu2", reshape=lambda y: y.flip(1)),
        GradCAM(model),
    ]
    together = explain_all(cams, x, classes)
    for cam, heatmaps in zip(cams, together, strict=True):
        # Fused attention and the explicit one that is shared differ by rounding.
        assert close(heatmaps, cam(x, classes), 1e-3 if cam.model is vit else 1e-6), cam.name


def test_a_method_without_gradients_may_share_with_one_at_another_layer() -> None:
    # Nothing reaches `first` backward, which only the second method needs to know about.
    class Sum(Spy):
        pass

    model = conv_model(before=lambda y: y.detach())
    activations_only, gradients = Sum(model, "first", needs=Evidence.NONE), GradCAM(model, "layer")
    together = explain_all([activations_only, gradients], INPUT, [0, 1, 2])
    assert torch.equal(together[0], activations_only(INPUT, [0, 1, 2]))
    assert torch.equal(together[1], gradients(INPUT, [0, 1, 2]))


def test_methods_that_leave_the_layer_open_search_it_once() -> None:
    model = tiny()
    with counted(model.stage1) as passes:
        explain_all([GradCAM(model), LayerCAM(model), XGradCAM(model)], INPUT)
    assert passes == [1, 3]


def test_explain_all_refuses_what_is_no_method() -> None:
    with pytest.raises(InputError, match=r"methods\[1\] is a str; expected CAM objects"):
        sharing._explain([GradCAM(tiny()), "grad-cam"], INPUT, None, {})
    assert explain_all([], INPUT) == []


@pytest.mark.parametrize("name", each(ANY_LAYER))
def test_order_of_the_target_layers_changes_no_map(name: str) -> None:
    one, other = (quick(name)(tiny(), layers).explain(INPUT) for layers in (["relu1", "relu2"], ["relu2", "relu1"]))
    assert one.layers == ("relu1", "relu2")
    assert other.layers == tuple(other.saliency) == ("relu2", "relu1")
    assert close(one.heatmaps, other.heatmaps)
    for layer in one.layers:
        assert close(one.saliency[layer], other.saliency[layer])
        if METHODS[name].layer_choice is LayerChoice.LAST:
            assert close(one.saliency[layer], quick(name)(tiny(), layer).explain(INPUT).saliency[layer])


# Chunks


@pytest.mark.parametrize("name", each(IN_CHUNKS))
def test_batch_size_changes_no_map(name: str) -> None:
    for layer in ("relu2", "stage1"):
        expected = quick(name)(tiny(), layer)(INPUT, [0, 1, 2])
        for batch_size in (1, 7, 1000):
            assert close(quick(name)(tiny(), layer, batch_size=batch_size)(INPUT, [0, 1, 2]), expected, 1e-5)


@pytest.mark.parametrize("name", each(IN_CHUNKS))
def test_no_pass_has_more_rows_than_batch_size(name: str) -> None:
    model = tiny()
    with counted(model.fc) as passes:
        quick(name)(model, "stage1", batch_size=5)(INPUT, [0, 1, 2])
    assert len(passes) > 1
    assert max(passes[1:]) <= 5


@pytest.mark.parametrize("batch_size", [1, 4, 7, 18, 64])
def test_score_cam_runs_one_pass_and_one_for_each_chunk(batch_size: int) -> None:
    model = tiny()
    activations = evidence(model, "stage2", INPUT).activations
    assert (activations.flatten(2).std(2) > 0).all()
    with counted(model.stage1) as passes:
        ScoreCAM(model, "stage2", batch_size=batch_size)(INPUT)
    assert passes[0] == 3
    assert len(passes) == 1 + ceil(3 * 6 / batch_size)
    assert sum(passes[1:]) == 3 * 6
    with torch.no_grad():
        model.stage2.weight[:4] = 0  # four constant channels share one row of each image
    with counted(model.stage1) as passes:
        ScoreCAM(model, "stage2", batch_size=batch_size)(INPUT)
    assert sum(passes[1:]) == 3 * (2 + 1)


@pytest.mark.parametrize(("for_each_thread", "most"), [(9, 18), (4, 8), (0, 2)])
def test_on_a_cpu_a_pass_has_no_more_rows_than_the_caches_hold(
    for_each_thread: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    expected = ScoreCAM(model, "stage2")(INPUT)
    monkeypatch.setattr(scoring, "_NEAR", for_each_thread * INPUT[:1].nbytes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with counted(model.stage1) as passes:
        found = ScoreCAM(model, "stage2", batch_size=64)(INPUT)
    assert max(passes[1:]) == most
    assert sum(passes[1:]) == 3 * 6
    assert close(found, expected, 1e-5)


def test_memory_of_score_cam_grows_with_batch_size_and_not_with_channels() -> None:
    def largest(channels: int, batch_size: int) -> int:
        layer, fc = nn.Conv2d(3, channels, 4, stride=4), nn.Linear(channels, 5)
        model = build(lambda m, x: m.fc(m.layer(x).mean((2, 3))), layer=layer, fc=fc)
        with Operations() as operations:
            ScoreCAM(model, "layer", batch_size=batch_size)(images(3))
        return operations.largest

    row = 3 * 16 * 16
    assert [largest(k, 4) for k in (4, 16, 48)] == [4 * row] * 3
    assert largest(16, 16) == 16 * row


def test_rescore_and_replay_take_any_number_of_rows() -> None:
    model = tiny()
    seen = evidence(model, "relu2", INPUT, [0, 1, 2], batch_size=4)
    for index in (torch.arange(3), torch.tensor([2, 2, 0, 1, 1, 1, 0, 2, 0]), torch.tensor([1])):
        with counted(model.fc) as passes:
            assert close(seen.rescore(INPUT[index], index), seen.scores[index])
            assert close(seen.replay(seen.activations[index], index), seen.scores[index])
        assert max(passes) <= 4
    nothing = torch.empty(0).long()
    assert seen.rescore(INPUT[:0], nothing).shape == seen.replay(seen.activations[:0], nothing).shape == (0,)
    several = evidence(tiny(), "relu2", INPUT, [[0, 1]] * 3, batch_size=4)
    assert several.rescore(INPUT, torch.arange(3)).shape == (3, 2)


def test_rows_are_scored_for_the_prediction_on_the_clean_image() -> None:
    # A masked image may be predicted as another class; its score stays that of the first one.
    model = tiny()
    seen = evidence(model, "relu2", INPUT)
    masked = INPUT * -20
    with torch.no_grad():
        clean, changed = model(INPUT).argmax(1), model(masked)
    assert (changed.argmax(1) != clean).any()
    expected = changed.gather(1, clean[:, None])[:, 0]
    torch.testing.assert_close(seen.rescore(masked, torch.arange(3)), expected, atol=1e-5, rtol=1e-5)


def test_no_graph_while_rows_are_scored() -> None:
    model = tiny()
    seen = graphs(model)
    capture = evidence(model, "relu2", INPUT)
    for tensors in seen.values():
        tensors.clear()
    rows: list[Tensor] = [
        capture.rescore(INPUT.clone().requires_grad_(), torch.arange(3)),
        capture.replay(capture.activations, torch.arange(3)),
    ]
    assert not any(row.requires_grad for row in rows)
    assert not any(sum(seen.values(), []))  # noqa: RUF017
