"""Targets of embedding models, the largest logits, and what speaks against: by hand and through methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import conv_model, images, tiny
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import EinsumCAM, FinerCAM, GradCAM, ScoreCAM
from gradcam_kit.errors import ClassIndexError, InputError, OptionError, ShapeError, TargetError
from gradcam_kit.targets import ClassLogit, EmbeddingSimilarity, FinerTarget, Negative, TopK

INPUT = images(3, size=(10, 8))


# Embeddings


def test_cosine_by_hand() -> None:
    embeddings = torch.tensor([[3.0, 4.0], [-1.0, 0.0]])
    assert_close(EmbeddingSimilarity([2.0, 0.0])(embeddings), torch.tensor([0.6, -1.0]))
    assert_close(EmbeddingSimilarity([[6.0, 8.0], [0.0, 1.0]])(embeddings), torch.tensor([1.0, 0.0]))
    assert_close(EmbeddingSimilarity(np.array([1, 0]))(1e-20 * embeddings.double()), torch.tensor([0.6, -1]).double())


@pytest.mark.parametrize(
    "output",
    [
        lambda e: {"last_hidden_state": e[:, None] * 2, "image_embeds": e},
        lambda e: {"image_features": e, "text_features": e * -1, "logit_scale": e.new_ones(())},
        lambda e: {"last_hidden_state": e[:, None], "pooler_output": e},
        lambda e: (e, e[:2] * -1, e.new_ones(())),
        lambda e: (e[:, :2] @ e[:, :2].T, e),
        lambda e: [e],
        lambda e: {"embedding": e},
    ],
)
def test_embedding_in_every_form(output: Callable[[Tensor], Any]) -> None:
    reference = torch.arange(5.0)
    found = GradCAM(conv_model(output=output), "layer").explain(INPUT, EmbeddingSimilarity(reference))
    expected = GradCAM(conv_model(), "layer").explain(
        INPUT, lambda e: torch.stack([row @ reference / row.norm() / reference.norm() for row in e])
    )
    assert_close(found.scores, expected.scores)
    assert_close(found.saliency["layer"], expected.saliency["layer"])


@pytest.mark.parametrize("method", [ScoreCAM, EinsumCAM])
@pytest.mark.parametrize("rows", [slice(None), 1])
def test_methods_compare_each_image_with_its_own_reference(method: Any, rows: Any) -> None:
    reference = torch.randn(3, 5, generator=torch.Generator().manual_seed(5))[rows]

    def by_sample(e: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(e, reference.expand(3, 5), dim=1)

    cam = method(conv_model(behind=lambda x: x), "layer", batch_size=5)
    found, expected = cam.explain(INPUT, EmbeddingSimilarity(reference)), cam.explain(INPUT, by_sample)
    assert_close(found.saliency["layer"], expected.saliency["layer"], rtol=1e-4, atol=1e-6)


def test_cosine_of_half_embeddings_is_float32() -> None:
    embeddings = torch.tensor([[300.0, 400.0]], dtype=torch.float16)  # whose square overflows
    found = EmbeddingSimilarity([1.0, 0.0])(embeddings)
    assert found.dtype == torch.float32
    assert_close(found, torch.tensor([0.6]))


def test_hugging_face_image_embedding() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, projection_dim=6, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    picture = images(2, size=(16, 16))
    with torch.no_grad():
        reference = model(pixel_values=picture).image_embeds.flip(0)
    found = GradCAM(model).explain({"pixel_values": picture}, EmbeddingSimilarity(reference))
    cosine = nn.functional.cosine_similarity(reference[0], reference[1], dim=0)
    assert_close(found.scores, cosine.expand(2))
    assert found.heatmaps.isfinite().all()
    assert not found.is_empty.any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EmbeddingSimilarity(torch.ones(7)), ShapeError, r"\(3, 5\) and the reference has 7 numbers"),
        (lambda: EmbeddingSimilarity(torch.ones(2, 5)), ShapeError, "2 references for 3 images"),
        (lambda: EmbeddingSimilarity(torch.ones(1, 3, 5)), ShapeError, r"\(1, 3, 5\); expected \(d,\) or \(n, d\)"),
        (lambda: EmbeddingSimilarity([[1.0] * 5, [0.0] * 5, [1.0] * 5]), TargetError, "zeros"),
        (lambda: EmbeddingSimilarity("cat"), InputError, "reference is a str"),
    ],
)
def test_refused_references_say_what_is_wrong(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GradCAM(conv_model(), "layer")(INPUT, make())


# The largest logits


def test_largest_logits_by_hand() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [-1.0, -2.0, -4.0]])
    assert TopK(1)(logits).tolist() == [5, -1]
    assert TopK(2)(logits).tolist() == [8, -3]
    assert TopK(9)(logits).tolist() == [9, -7]
    assert TopK(1)(torch.tensor([2.0, -3.0])).tolist() == [2, -3]


@pytest.mark.parametrize("method", [GradCAM, EinsumCAM, ScoreCAM])
def test_the_largest_are_those_of_the_images_as_they_are(method: Any) -> None:
    model = conv_model(behind=lambda x: x)
    with torch.no_grad():
        largest = model(INPUT).argsort(1, descending=True)[:, :2]
    found = method(model, "layer").explain(INPUT, TopK(2))
    expected = method(model, "layer").explain(INPUT, lambda logits: logits.gather(1, largest).sum(1))
    assert_close(found.scores, expected.scores)
    assert_close(found.saliency["layer"], expected.saliency["layer"], rtol=1e-4, atol=1e-6)
    assert TopK(1).settle(torch.tensor([[1.0, 2.0]])).select(torch.tensor([0, 0]))(torch.eye(2)).tolist() == [0, 1]


@pytest.mark.parametrize("k", [0, -1, True])
def test_refused_counts_say_what_is_wrong(k: int) -> None:
    with pytest.raises(OptionError, match=f"k is {k}; expected a positive int"):
        TopK(k)


# What speaks against


def test_negative_class_of_a_binary_model() -> None:
    model = tiny(classes=1)
    positive = GradCAM(model, "relu2").explain(INPUT)
    for target in (
        Negative(0),
        Negative([0, 0, 0]),
        Negative(ClassLogit(0)),
        Negative(TopK(1)),
        Negative(FinerTarget(0)),
    ):
        negative = GradCAM(model, "relu2").explain(INPUT, target)
        assert torch.equal(negative.scores, -positive.scores)
        assert torch.equal(negative.saliency["relu2"], -positive.saliency["relu2"])
    assert torch.equal(GradCAM(model, "relu2")(INPUT, Negative(Negative(0))), positive.heatmaps)
    with pytest.raises(ClassIndexError, match=r"class 1 for a model with 1 output.*targets=Negative\(0\)"):
        GradCAM(model, "relu2")(INPUT, Negative(1))


@pytest.mark.parametrize("method", [GradCAM, EinsumCAM, ScoreCAM, FinerCAM])
@pytest.mark.parametrize("classes", [1, [4, 0, 2], [[0, 1], [2, 3], [4, 0]]])
def test_negative_of_classes(method: Any, classes: Any) -> None:
    cam = method(tiny(), "relu2", batch_size=4)
    found = cam.explain(INPUT, Negative(classes))
    expected = cam.explain(INPUT, ClassLogit(classes))
    assert torch.equal(found.scores, -expected.scores)
    assert found.heatmaps.shape == expected.heatmaps.shape
    if method is not ScoreCAM:
        assert_close(found.saliency["relu2"], -expected.saliency["relu2"])
    elif isinstance(classes, list) and isinstance(classes[0], int):
        plain = cam.explain(INPUT, lambda logits: -logits[[0, 1, 2], classes])
        assert_close(found.saliency["relu2"], plain.saliency["relu2"])


def test_negative_of_what_the_images_as_they_are_settle() -> None:
    settled = Negative(TopK(1)).settle(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    assert settled(torch.tensor([[7.0, 5.0], [7.0, 9.0]])).tolist() == [-5, -7]
    assert settled.select(torch.tensor([1]))(torch.tensor([[7.0, 9.0]])).tolist() == [-7]


@pytest.mark.parametrize("target", [None, lambda logits: logits[:, 0]])
def test_negative_needs_a_target_that_selects(target: Any) -> None:
    with pytest.raises(
        InputError, match=r"Negative got a \w+; expected classes or a target with select.*lambda output"
    ):
        Negative(target)
