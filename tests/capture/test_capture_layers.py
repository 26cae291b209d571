"""Target layers: found by name or module, chosen by running the model, and told when they do not exist."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torchvision
from evidence import ON_CNNS, counted, evidence, quick
from models import Restless, TinyCNN, TinyViT, build, conv_model, images, seeded, tiny
from representatives import each
from torch import Tensor, nn

from gradcam_kit import BaseCAM, GradCAM, ScoreCAM
from gradcam_kit.capture import ClassLogit, layer_candidates, read_inputs
from gradcam_kit.capture.model.layers import find_layers
from gradcam_kit.errors import InputError, LayerNotFoundError, TargetError
from gradcam_kit.targets import EmbeddingSimilarity, SegmentationTarget
from gradcam_kit.types import Evidence

INPUT = images(2)

# By name and by module


def test_names_modules_and_sequences_of_both() -> None:
    model = nn.Sequential(tiny(), nn.Identity())
    by_name = GradCAM(model, "0.stage2")(INPUT)
    for layers in (model[0].stage2, ["0.stage2"], (model[0].stage2,), [model[0].stage2, "0.stage2"]):
        cam = GradCAM(model, layers)
        assert torch.equal(cam(INPUT), by_name)
        assert cam.explain(INPUT).layers == ("0.stage2",)
    assert GradCAM(model, ["0.relu2", model[0].stage1]).explain(INPUT).layers == ("0.relu2", "0.stage1")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("layer_4", "TinyCNN has no layer 'layer_4'; its layers are stage1, relu1"), ("stage_1", "did you mean 'stage1'"),
     ("Stage2", "did you mean 'stage2'"), ("fcc", "did you mean 'fc'"),
     ("", "has no layer ''"), ("stage1.0", "'stage1'")],
)  # fmt: skip
def test_unknown_name_is_told_with_the_nearest(wrong: str, hint: str) -> None:
    for layers in (wrong, ["stage1", wrong]):
        with pytest.raises(LayerNotFoundError, match=hint) as raised:
            GradCAM(tiny(), layers)
        assert isinstance(raised.value, LookupError)


def test_module_of_another_model_is_told() -> None:
    for other in (tiny().stage1, nn.ReLU()):
        with pytest.raises(LayerNotFoundError, match=r"not part of this TinyCNN.*named_modules"):
            GradCAM(tiny(), other)


def test_wrong_kinds_are_told() -> None:
    find = inspect.unwrap(find_layers)
    with pytest.raises(InputError, match="target_layers is an int; expected a module or its name"):
        find(tiny(), 7, tiny())
    with pytest.raises(InputError, match="a target layer is an int"):
        find(tiny(), ["stage1", 7], tiny())
    with pytest.raises(InputError, match="target_layers is empty"):
        GradCAM(tiny(), [])


def test_one_module_under_two_names() -> None:
    model = build(lambda m, x: m.fc(m.second(x).relu().mean((2, 3))), first=nn.Conv2d(3, 6, 3), fc=nn.Linear(6, 5))
    model.second = model.first
    expected = GradCAM(model, "first").explain(INPUT)
    for names in (("second",), ("first", "second")):
        explanation = GradCAM(model, names).explain(INPUT)
        assert explanation.layers == tuple(explanation.saliency) == names
        assert torch.equal(explanation.heatmaps, expected.heatmaps)


def test_a_model_may_be_its_own_layer() -> None:
    layer = seeded(nn.Conv2d(3, 2, 3))
    explanation = GradCAM(layer, layer).explain(INPUT, lambda maps: maps[:, 1].mean((1, 2)))
    assert explanation.layers == ("Conv2d",)
    assert torch.allclose(explanation.saliency["Conv2d"], layer(INPUT)[:, 1] / 14**2, atol=1e-6)


def test_hooks_of_the_user_run_first() -> None:
    model = tiny()
    model.stage2.register_forward_hook(lambda module, args, output: output * 2)
    assert torch.equal(evidence(model, "stage2", INPUT).activations, 2 * evidence(tiny(), "stage2", INPUT).activations)


# Chosen automatically

CHOSEN = {
    "resnet18": "layer4",
    "vgg11": "avgpool",
    "mobilenet_v3_small": "features",
    "densenet121": "features",
    "squeezenet1_1": "classifier.2",
    "convnext_tiny": "features",
    "efficientnet_b0": "features",
    "swin_t": "permute",
    "vit_b_16": "encoder.layers.encoder_layer_11.ln_1",
}


@pytest.mark.parametrize("name", CHOSEN)
def test_automatic_layer_of_torchvision_models(name: str) -> None:
    small = {"vgg11": {"dropout": 0.0}, "vit_b_16": {"image_size": 32}}.get(name, {})
    model = torchvision.models.get_model(name, weights=None, num_classes=7, **small)
    explanation = GradCAM(model).explain(images(1, size=(32, 32) if name == "vit_b_16" else (64, 64)))
    assert explanation.layers == (CHOSEN[name],)
    (saliency,) = explanation.saliency.values()
    assert min(saliency.shape[1:]) >= 2


def test_a_trained_head_changes_no_choice() -> None:
    # torchvision's heads of vision transformers start with zeros, which stop every gradient.
    for options, layer in (({}, "blocks.1.norm1"), ({"pool": "mean"}, "norm"), ({"prefix": 5}, "blocks.1.norm1"),
                           ({"prefix": 0, "pool": "mean"}, "norm")):  # fmt: skip
        for zeros in (False, True):
            model = seeded(TinyViT(**options))
            if zeros:
                nn.init.zeros_(model.head.weight)
            assert GradCAM(model).explain(INPUT).layers == (layer,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_automatic_layer_does_not_depend_on_precision_or_size(dtype: torch.dtype) -> None:
    for size in ((16, 16), (20, 12), (9, 33)):
        assert GradCAM(tiny().to(dtype)).explain(images(2, size=size).to(dtype)).layers == ("relu2",)


@pytest.mark.parametrize("output", [lambda z: (z, "x"), lambda z: {"logits": z, "loss": z.sum()}, lambda z: [z]])
def test_automatic_layer_with_other_outputs(output: Any) -> None:
    assert GradCAM(conv_model(output=output)).explain(INPUT).layers == ("layer",)


def test_automatic_layer_is_one_on_which_the_score_depends() -> None:
    unused = conv_model()
    unused.aside = nn.Conv2d(3, 3, 3)
    plain = unused.run
    unused.run = lambda m, x: (plain(m, x), m.aside(x))[0]
    assert GradCAM(unused).explain(INPUT).layers == ("layer",)
    detached = conv_model(behind=lambda y: y.relu() + 0 * y.detach())
    detached.run = lambda m, x: m.fc(m.layer(m.first(x)).detach().mean((2, 3)) + m.first(x).mean((1, 2, 3))[:, None])
    with pytest.raises(LayerNotFoundError, match=r"candidates: .*layer \(6, 8, 8\).*target_layers="):
        GradCAM(detached).explain(INPUT)


def test_automatic_layer_behind_a_cut_and_of_a_frozen_backbone() -> None:
    for cut in (lambda y: y.detach(), torch.no_grad()(lambda y: y.clone()), lambda y: (y > 0).float()):
        assert GradCAM(conv_model(before=cut)).explain(INPUT).layers == ("layer",)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    frozen = build(
        lambda m, x: m.fc(torch.no_grad()(m.backbone)(x).mean((2, 3))), backbone=backbone, fc=nn.Linear(6, 5)
    )
    plain = build(lambda m, x: m.fc(m.backbone(x).mean((2, 3))), backbone=backbone, fc=nn.Linear(6, 5))
    explanation = GradCAM(frozen).explain(INPUT)
    assert explanation.layers == ("backbone",)
    assert torch.equal(explanation.heatmaps, GradCAM(plain, "backbone")(INPUT))


def test_automatic_layer_skips_shared_modules_and_prefers_short_names() -> None:
    relu = nn.ReLU()
    model = seeded(
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Sequential(nn.Conv2d(4, 4, 3), relu)), nn.Flatten(1))
    )
    model = nn.Sequential(model, seeded(nn.Linear(4 * 12 * 12, 3)))
    assert GradCAM(model).explain(INPUT).layers == ("0.0",)


def test_no_suitable_layer_is_an_error_that_lists_the_candidates() -> None:
    flat = seeded(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    with pytest.raises(LayerNotFoundError, match=r"Sequential has no layer with positions.*none has positions"):
        GradCAM(flat)(INPUT)


def test_squeezed_outputs_of_one_image_are_read() -> None:
    model = build(lambda m, x: m.body(x).squeeze(), body=TinyCNN(classes=1))
    for batch in (INPUT, INPUT[:1]):
        explanation = GradCAM(model).explain(batch)
        assert explanation.layers == ("body.relu2",)
        assert torch.equal(explanation.heatmaps, GradCAM(model, "body.relu2")(batch))


@pytest.mark.parametrize("name", each(ON_CNNS))
def test_automatic_layers_are_those_that_are_reported_and_used(name: str) -> None:
    model = seeded(Restless())
    explanation = quick(name)(model).explain(INPUT)
    assert tuple(explanation.saliency) == explanation.layers
    if explanation.layers[0] in dict(model.named_modules()):
        again = quick(name)(model, list(explanation.layers)).explain(INPUT)
        assert again.layers == explanation.layers
        assert torch.equal(again.heatmaps, explanation.heatmaps)


class Sum(BaseCAM):
    """A method without scores."""

    needs = Evidence.NONE
    class_agnostic = True

    def saliency(self, layer: Any) -> Tensor:
        return layer.activations.sum(1)


@pytest.mark.parametrize("layer", ["layer", None])
def test_methods_without_scores_need_no_readable_output(layer: str | None) -> None:
    for output in (lambda z: (z, z[:, :2]), lambda z: "text", lambda z: z[..., None, None], lambda z: None):
        explanation = Sum(conv_model(output=output), layer).explain(INPUT)
        assert torch.equal(explanation.heatmaps, Sum(conv_model(), "layer")(INPUT))
        assert explanation.scores is None
        assert explanation.targets is None
        with pytest.raises((TargetError, ValueError)):
            GradCAM(conv_model(output=output), layer)(INPUT)
    assert Sum(conv_model(), layer).explain(INPUT).scores is not None


def test_candidates_tell_shapes_reach_and_reason() -> None:
    model = seeded(TinyViT())
    found = layer_candidates(model, read_inputs(INPUT, {}), None, ClassLogit)
    by_name = {one.name: one for one in found}
    assert [one.name for one in found][:2] == ["patch", "blocks.0.norm1"]
    assert by_name["patch"].shape == (8, 4, 4)
    assert (by_name["patch"].layout, by_name["norm"].layout) == ("ChannelsFirst", "Tokens")
    assert by_name["blocks.1.norm1"].reached
    assert not by_name["norm"].reached
    assert [one.name for one in found if one.chosen] == ["blocks.1.norm1"]
    assert by_name["blocks.1.norm1"].reason == "the last normalization that sends gradients to the patch tokens"
    assert by_name["norm"].reason == ""


def test_candidates_run_the_model_on_one_image_unless_the_target_needs_all() -> None:
    model = tiny()
    with counted(model.stage1) as passes:
        GradCAM(model)(INPUT, lambda logits: torch.stack([logits[0, 1], logits[1, 0]]))
        ScoreCAM(model, batch_size=100)(INPUT, [0, 1])
    assert passes == [2, 2, 1, 2, 12]


def test_the_automatic_layer_of_a_dense_output_is_in_front_of_it() -> None:
    dense = build(lambda m, x: m.last(m.layer(x).relu()), layer=nn.Conv2d(3, 6, 3), last=nn.Conv2d(6, 4, 1))
    assert GradCAM(dense).explain(INPUT, SegmentationTarget(None, 1)).layers == ("layer",)
    assert GradCAM(dense).explain(INPUT, lambda maps: maps[:, 2].mean((1, 2))).layers == ("layer",)
    two = SegmentationTarget(torch.ones(14, 14), torch.tensor([[0, 1], [2, 3]]))
    assert GradCAM(dense).explain(INPUT, two).layers == ("layer",)
    # The same network with pooled scores is a classifier, whose last maps are those of the classes.
    pooled = build(lambda m, x: dense(x).mean((2, 3)), dense=dense)
    assert GradCAM(pooled).explain(INPUT).layers == ("dense",)
    # Nothing in front of the output: better the output than none.
    assert GradCAM(build(lambda m, x: m.only(x), only=nn.Conv2d(3, 4, 3))).explain(
        INPUT, SegmentationTarget(None, 1)
    ).layers == ("only",)


def test_the_automatic_layer_is_reached_from_every_image() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        shared = m.shared(x).relu()
        bright = (x.mean((1, 2, 3)) > 0).float()[:, None]
        fine, coarse = m.fine(shared).relu().mean((2, 3)), m.coarse(shared).relu().mean((2, 3))
        return m.fc(bright * fine + (1 - bright) * coarse)

    model = build(
        run, shared=nn.Conv2d(3, 4, 3), fine=nn.Conv2d(4, 6, 3), coarse=nn.Conv2d(4, 6, 3, stride=2), fc=nn.Linear(6, 5)
    )
    mixed = torch.stack([INPUT[0].abs(), -INPUT[1].abs()])
    explanation = GradCAM(model).explain(mixed, EmbeddingSimilarity(torch.ones(5)))
    assert explanation.layers == ("shared",)
    assert explanation.saliency["shared"].flatten(1).any(1).all()


def test_queries_that_fit_a_grid_are_no_positions() -> None:
    class Decoder(nn.Module):
        """Sixteen queries of a picture whose map has 3 x 3 positions."""

        def __init__(self) -> None:
            super().__init__()
            self.queries, self.norm = nn.Parameter(torch.zeros(16, 6)), nn.LayerNorm(6)

        def forward(self, maps: Tensor) -> Tensor:
            tokens = maps.flatten(2).mT
            found = (self.queries @ tokens.mT).softmax(-1) @ tokens
            return self.norm(found + self.queries)

    model = build(
        lambda m, x: m.fc(m.decoder(m.backbone(x)).amax(1)),
        backbone=nn.Conv2d(3, 6, 5, stride=5),
        decoder=Decoder(),
        fc=nn.Linear(6, 5),
    )
    assert GradCAM(model).explain(INPUT).layers == ("backbone",)


class TwoBranches(nn.Module):
    """Classes 0 and 1 depend on `first`, classes 2 and 3 on `second`, which runs later."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.first(x).relu(), self.second(x).relu())
        return torch.cat([head(part.mean((2, 3))) for head, part in zip(self.heads, parts, strict=True)], 1)


def test_a_target_that_is_not_a_class_does_not_choose_the_layers_of_classes() -> None:
    cam, images = GradCAM(TwoBranches().eval()), torch.randn(2, 3, 16, 16)
    assert cam.explain(images, 1).layers == ("first",)
    assert cam.explain(images, lambda output: output[..., 3]).layers == ("second",)
    assert cam.explain(images, 1).layers == ("first",)
