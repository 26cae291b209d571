"""Modules that run several times in a pass are a layer for each call; paddings are not layers."""

from __future__ import annotations

import copy
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from cases import assert_same
from models import build, images, seeded
from representatives import ON_CLASSES, crossed, each
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from gradcam_kit import CAM, METHODS, EigenCAM, GradCAM, RefineCAM, ScoreCAM
from gradcam_kit.capture import layer_candidates, read_inputs
from gradcam_kit.capture.reuse import is_padding
from gradcam_kit.errors import CaptureError, LayerNotFoundError
from gradcam_kit.targets import ClassLogit

INPUT = images(2, size=(12, 12)).double()
QUICK = {
    "rise": {"masks": 20},
    "score-cam": {"channels": 4},
    "ss-cam": {"samples": 2},
    "is-cam": {"steps": 2},
    "sess": {"scales": 2},
}


class Block(nn.Module):
    """A convolution, and an activation that may belong to others too."""

    def __init__(self, before: int, after: int, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def mean_head(m: Any, x: Tensor) -> Tensor:
    return m.fc(x.mean((2, 3)))


def stem_and_head(act: nn.Module, own: nn.Module) -> nn.Module:
    """The activation behind the stem serves behind the head too."""
    return build(
        lambda m, x: mean_head(m, m.last(m.head(m.act(m.stem(x))))),
        stem=nn.Conv2d(3, 6, 3, 2, 1), act=act, head=nn.Conv2d(6, 7, 3, padding=1), last=own, fc=nn.Linear(7, 5),
    )  # fmt: skip


def residual_block(act: nn.Module, own: nn.Module) -> nn.Module:
    """The activation inside of a block serves again behind its sum."""
    return build(
        lambda m, x: mean_head(m, m.last(m.second(m.act(m.first(y := m.stem(x)))) + y)),
        stem=nn.Conv2d(3, 6, 3, 2, 1), first=nn.Conv2d(6, 6, 3, padding=1), act=act, second=nn.Conv2d(6, 6, 1),
        last=own, fc=nn.Linear(6, 5),
    )  # fmt: skip


def dense_block(act: nn.Module, own: nn.Module) -> nn.Module:
    """Activations in front of each convolution, whose output is joined to its input."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = torch.cat([x, m.first(m.act(x))], 1)
        return mean_head(m, m.last(m.norm(x)))

    parts = {"stem": nn.Conv2d(3, 4, 3, 2, 1), "first": nn.Conv2d(4, 3, 3, padding=1), "norm": nn.BatchNorm2d(7)}
    return build(run, **parts, act=act, last=own, fc=nn.Linear(7, 5))


NETS = {"stem and head": stem_and_head, "residual": residual_block, "dense": dense_block}
ACTS = {"relu": partial(nn.ReLU, inplace=True), "relu6": nn.ReLU6, "silu": nn.SiLU}


def pair(net: str, act: str) -> tuple[nn.Module, nn.Module]:
    """The model with one activation for two places, and the same with two."""
    shared = ACTS[act]()
    with_shared = NETS[net](shared, shared).double()
    own = copy.deepcopy(with_shared)
    own.last = ACTS[act]()
    assert torch.equal(with_shared(INPUT), own(INPUT))
    return with_shared, own


@pytest.mark.parametrize(
    ("name", "act", "net"),
    crossed(
        ["grad-cam", "layer-cam", "eigen-cam", "score-cam", "full-grad", "recipro-cam"],
        product(ACTS, NETS),
        whole=("grad-cam", "recipro-cam"),
    ),
)
def test_a_shared_activation_is_explained_like_one_of_its_own(name, act, net):
    shared, own = pair(net, act)
    for layers in ((None, None), ("last#2", "last"), ("act#1", "act")):
        found, expected = (
            METHODS[name](model, layer, **QUICK.get(name, {})).explain(INPUT, [1, 3])
            for model, layer in zip((shared, own), layers, strict=True)
        )
        assert_close(found.heatmaps, expected.heatmaps)
        for one, other in zip(found.saliency.values(), expected.saliency.values(), strict=True):
            assert_same(one, other.numpy())


@pytest.mark.parametrize("name", each(sorted(ON_CLASSES)))
def test_every_method_takes_a_call_by_its_number(name):
    shared, own = pair("stem and head", "relu")
    try:
        expected = METHODS[name](own, "last", **QUICK.get(name, {}))(INPUT, 1)
    except Exception as error:
        with pytest.raises(type(error)):
            METHODS[name](shared, "act#2", **QUICK.get(name, {}))(INPUT, 1)
        return
    assert_close(METHODS[name](shared, "act#2", **QUICK.get(name, {}))(INPUT, 1), expected)


@pytest.mark.parametrize("name", ["recipro-cam", "ablation-cam"])
def test_replays_change_the_call_that_is_meant(name):
    def run(m: Any, x: Tensor) -> Tensor:  # changed from pass to pass, so that nothing can be isolated
        return mean_head(m, m.act(m.head(m.act(m.stem(x)) + 0 * x.mean())).sigmoid())

    parts = {"stem": nn.Conv2d(3, 6, 3, 2, 1), "head": nn.Conv2d(6, 7, 3, padding=1), "fc": nn.Linear(7, 5)}
    shared = build(run, act=nn.ReLU(), **parts).double()
    outer = build(lambda m, x: m.inner(x), inner=shared)
    own = copy.deepcopy(shared)
    own.run = lambda m, x: mean_head(m, m.last(m.head(m.act(m.stem(x)))).sigmoid())
    own.last = nn.ReLU()
    for call, layer in (("act#1", "act"), ("act#2", "last")):
        expected = METHODS[name](own, layer).explain(INPUT, 1).saliency[layer]
        assert_close(METHODS[name](shared, call).explain(INPUT, 1).saliency[call], expected)
        assert_close(METHODS[name](outer, f"inner.{call}").explain(INPUT, 1).saliency[f"inner.{call}"], expected)


def test_the_error_of_a_layer_without_a_call_says_how_to_name_one():
    shared, _ = pair("dense", "relu")
    with pytest.raises(CaptureError, match=r"'act' ran 2 times.*'act#1' is the first, 'act#2' the last"):
        GradCAM(shared, "act")(INPUT)
    with pytest.raises(CaptureError, match=r"'act#3' is call 3 of a module that ran 2 time"):
        GradCAM(shared, "act#3")(INPUT)
    with pytest.raises(LayerNotFoundError, match=r"'act#0' is not a call of 'act': the first call is 'act#1'"):
        GradCAM(shared, "act#0")
    with pytest.raises(LayerNotFoundError, match="no layer 'axt'; did you mean 'act'"):
        GradCAM(shared, "axt#1")
    assert GradCAM(shared, ["act#2", "act#1"]).explain(INPUT).layers == ("act#2", "act#1")


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_shared_activation_inside_of_a_checkpoint(reentrant):
    def run(m: Any, x: Tensor) -> Tensor:
        def part(x: Tensor) -> Tensor:
            return m.act(m.head(m.act(m.stem(x))))

        return mean_head(m, checkpoint(part, x.requires_grad_() if reentrant else x, use_reentrant=reentrant))

    plain, _ = pair("stem and head", "relu6")
    model = build(run, **{name: part for name, part in plain.named_children() if name != "last"}).double()
    model.load_state_dict(plain.state_dict())
    for call in ("act#1", "act#2"):
        if reentrant:
            with pytest.raises(CaptureError, match="reentrant checkpoint"):
                GradCAM(model, call)(INPUT, 1)
            continue
        assert_close(GradCAM(model, call)(INPUT, 1), GradCAM(plain, call)(INPUT, 1))


def test_the_weights_of_a_convolution_that_runs_twice():
    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(m.act(m.conv(m.act(m.conv(x)))).flatten(1).square())

    shared = build(run, conv=nn.Conv2d(3, 3, 3, padding=1), act=nn.ReLU(), fc=nn.Linear(432, 5)).double()
    own = copy.deepcopy(shared)
    own.pair = nn.Sequential(copy.deepcopy(shared.conv), nn.ReLU())
    own.run = lambda m, x: m.fc(m.pair(m.act(m.conv(x))).flatten(1).square())
    found = METHODS["winsor-cam"](shared).explain(INPUT, 1)
    assert found.layers == ("conv#1", "conv#2")
    expected = METHODS["winsor-cam"](own, ["conv", "pair.0"])(INPUT, 1)
    assert_close(found.heatmaps, expected)


def test_calls_beside_each_other_are_never_the_automatic_choice():
    """A head on two resolutions, and a tower for two images: the last call is one of several."""
    pyramid = build(
        lambda m, x: mean_head(m, m.head(y := m.body(x))) + mean_head(m, m.head(m.down(y))),
        body=nn.Conv2d(3, 6, 3, padding=1), down=nn.Conv2d(6, 6, 3, 2, 1), head=nn.Conv2d(6, 6, 1), fc=nn.Linear(6, 5),
    ).double()  # fmt: skip
    assert GradCAM(pyramid).explain(INPUT, 1).layers == ("down",)
    names = [one.name for one in layer_candidates(pyramid, read_inputs(INPUT, {}), None, ClassLogit)]
    assert names == ["body", "down"]
    assert GradCAM(pyramid, "head#1").explain(INPUT, 1).saliency["head#1"].shape == (2, 12, 12)
    assert ScoreCAM(pyramid, "head#2").explain(INPUT, 1).saliency["head#2"].shape == (2, 6, 6)
    towers = build(
        lambda m, x: mean_head(m, (m.tower(x) - m.tower(x.flip(3))).abs()),
        tower=nn.Conv2d(3, 6, 3), fc=nn.Linear(6, 5),
    ).double()  # fmt: skip
    with pytest.raises(LayerNotFoundError):
        GradCAM(towers)(INPUT, 1)


class HandWritten(nn.Module):
    """The padding of a convolution with stride 2 as other frameworks lay it out."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, 1, 0, 1))


PADS = {
    "zero": nn.ZeroPad2d((0, 1, 0, 1)),
    "constant": nn.ConstantPad2d(2, 0.5),
    "reflection": nn.ReflectionPad2d(1),
    "replication": nn.ReplicationPad2d((1, 0, 1, 2)),
    "hand-written": HandWritten(),
    "nested": nn.Sequential(nn.Sequential(nn.ZeroPad2d(1))),
}


@pytest.mark.parametrize("kind", PADS)
def test_a_padding_is_not_a_stage(kind):
    model = build(
        lambda m, x: mean_head(m, m.stage2(m.pad(m.stage1(x)))),
        stage1=nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()), pad=PADS[kind],
        stage2=nn.Sequential(nn.Conv2d(6, 6, 3, 2), nn.ReLU()), fc=nn.Linear(6, 5),
    ).double()  # fmt: skip
    assert RefineCAM(model).explain(INPUT, 1).layers == ("stage1", "stage2")
    ends = build(
        lambda m, x: mean_head(m, m.pad(m.stage(x))), stage=nn.Conv2d(3, 6, 3), pad=PADS[kind], fc=nn.Linear(6, 5)
    )
    assert EigenCAM(ends.double()).explain(INPUT, 1).layers == ("stage",)


@pytest.mark.parametrize(
    ("module", "before", "expected"),
    [
        (nn.ZeroPad2d(2), torch.rand(1, 2, 5, 7), True),
        (nn.ConstantPad1d(2, 1.0), torch.rand(2, 3, 9), True),
        (nn.ReplicationPad3d((1, 1, 0, 0, 2, 0)), torch.rand(1, 2, 4, 4, 4), True),
        (nn.Upsample(scale_factor=2), torch.rand(1, 2, 2, 2), False),
        (nn.Upsample(scale_factor=2), torch.rand(1, 2, 5, 5), False),
        (nn.AdaptiveAvgPool2d(6), torch.rand(1, 2, 5, 5), False),
        (nn.Identity(), torch.rand(1, 2, 5, 5), False),
        (nn.MaxPool2d(4, 1, 2), torch.rand(1, 2, 5, 5), False),
        (nn.Conv2d(2, 2, 1, padding=1), torch.rand(1, 2, 5, 5), False),
    ],
)
def test_what_counts_as_a_padding(module, before, expected):
    with torch.no_grad():
        assert is_padding(module, (before,), module(before)) is expected


def test_a_module_may_have_a_number_sign_in_its_name():
    model = build(lambda m, x: m.fc(m.get_submodule("conv#1")(x).mean((2, 3))), fc=nn.Linear(4, 3))
    model.add_module("conv#1", seeded(nn.Conv2d(3, 4, 3)))
    model.double()
    expected = GradCAM(model, model.get_submodule("conv#1"))(INPUT, 0)
    assert torch.equal(GradCAM(model, "conv#1")(INPUT, 0), expected)
    assert torch.equal(GradCAM(model, "conv#1#1")(INPUT, 0), expected)
    assert torch.equal(CAM(model, "conv#1#1:0")(INPUT, 0), CAM(model, "conv#1")(INPUT, 0))
