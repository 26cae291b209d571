"""A bag of images with one score gives a map for each image, and prompts belong to the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import assert_same
from models import build
from torch import Tensor, nn
from torch.testing import assert_close

from gradcam_kit import METHODS, AblationCAM, GradCAM, IntegratedGradCAM, LayerCAM, ReciproCAM, ScoreCAM, Smooth
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import CaptureError, GradCamKitError, ShapeError
from gradcam_kit.functional import normalize, upsample
from gradcam_kit.targets import ClassProbability


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TILES = draw(5, 3, 12, 12)


def features() -> dict[str, nn.Module]:
    return {"features": nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()), "head": nn.Linear(6, 4)}


def attention_bag() -> nn.Module:
    def run(m: Any, tiles: Tensor) -> Tensor:
        tokens = m.features(tiles).mean((2, 3))
        return m.head((m.attention(tokens).softmax(0) * tokens).sum(0, keepdim=True))

    return build(run, **features(), attention=nn.Linear(6, 1)).double()


def gated_bag() -> nn.Module:
    """Gated attention, as CLAM has it, with what else such models return: probabilities and raw attention."""

    def run(m: Any, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = m.features(tiles).mean((2, 3))
        raw = m.score(m.tanh(tokens).tanh() * m.gate(tokens).sigmoid()).T
        logits = m.head(raw.softmax(1) @ tokens)
        return logits, logits.softmax(1), raw

    return build(run, **features(), tanh=nn.Linear(6, 8), gate=nn.Linear(6, 8), score=nn.Linear(8, 1)).double()


def pooled_bag() -> nn.Module:
    """The largest response of all tiles; the output has no axis for the bag besides its own."""
    run = lambda m, tiles: {"logits": m.head(m.features(tiles).amax((0, 2, 3))[None])}  # noqa: E731
    return build(run, **features()).double()


BAGS = {
    "attention": (attention_bag, lambda output: output[:, 1]),
    "gated": (gated_bag, lambda output: output[0][:, 1]),
    "largest": (pooled_bag, lambda output: output["logits"][:, 1]),
}


def by_hand(model: nn.Module, score: Any) -> tuple[Tensor, Tensor]:
    kept = {}
    handle = model.features.register_forward_hook(lambda m, args, output: kept.update(output=output))
    total = score(model(TILES)).sum()
    handle.remove()
    return kept["output"].detach(), torch.autograd.grad(total, kept["output"])[0]


@pytest.mark.parametrize("kind", BAGS)
def test_each_tile_gets_the_map_of_the_score_of_the_bag(kind):
    make, score = BAGS[kind]
    model = make()
    activations, gradients = by_hand(model, score)
    expected = (gradients.mean((2, 3), keepdim=True) * activations).sum(1)
    targets = [score, lambda output: score(output).expand(5), lambda output: score(output)[0]]
    if kind != "gated":  # which has several floating-point tensors
        targets += [1, [1], torch.tensor([1])]
    for target in targets:
        found = GradCAM(model, "features").explain(TILES, target)
        assert_same(found.saliency["features"], expected.numpy())
        assert found.heatmaps.shape == (5, 12, 12)
        assert found.scores.shape == found.is_empty.shape == (5,)
        assert_close(found.scores, score(model(TILES)).detach().expand(5))
    assert_same(
        LayerCAM(model, "features").explain(TILES, score).saliency["features"],
        (gradients.clamp(min=0) * activations).sum(1).numpy(),
    )


def test_classes_of_a_bag():
    model = attention_bag()
    found = GradCAM(model).explain(TILES)
    assert found.layers == ("features",)
    assert torch.equal(found.targets, model(TILES).argmax(1).expand(5))
    several = GradCAM(model).explain(TILES, [[0, 2]])
    assert several.heatmaps.shape == (5, 2, 12, 12)
    for j, target in enumerate((0, 2)):
        assert_close(several.heatmaps[:, j], GradCAM(model)(TILES, target))
    with pytest.raises(ShapeError, match="5 targets for 1 images"):
        GradCAM(model)(TILES, [0, 1, 2, 3, 0])
    # A mean over the batch is not the score of a bag: the model gives a row for each image.
    plain = build(lambda m, x: m.head(m.features(x).mean((2, 3))), **features()).double()
    with pytest.raises(ShapeError, match=r"scores of shape \(1,\); expected \(5,\)"):
        GradCAM(plain, "features")(TILES, lambda output: output.mean(0, keepdim=True)[:, 1])


@pytest.mark.parametrize("kind", ["attention", "largest"])
def test_changed_tiles_are_scored_in_their_bag(kind):
    make, score = BAGS[kind]
    model = make()
    activations, _ = by_hand(model, score)
    weights = torch.zeros(5, 6, dtype=torch.float64)
    with torch.no_grad():
        for tile in range(5):
            for channel in range(6):
                mask = normalize(upsample(activations[tile : tile + 1, channel], (12, 12)))[0]
                bag = TILES.clone()
                bag[tile] *= mask
                weights[tile, channel] = score(model(bag))[0]
    expected = torch.einsum("nk,nkhw->nhw", weights.softmax(1), activations)
    assert_same(ScoreCAM(model, "features").explain(TILES, 1).saliency["features"], expected.numpy())
    kept = ReciproCAM(model, "features").explain(TILES, 1).saliency["features"]
    with torch.no_grad():
        for tile, h, w in ((0, 0, 0), (3, 2, 5), (4, 5, 1)):
            scores = []
            for h_kept, w_kept in ((h, w), (0, 0)):
                alone = torch.zeros_like(activations[tile])
                alone[:, h_kept, w_kept] = activations[tile, :, h_kept, w_kept]
                changed = torch.cat([activations[:tile], alone[None], activations[tile + 1 :]])
                handle = model.features.register_forward_hook(lambda *_, c=changed: c)
                scores.append(score(model(TILES))[0])
                handle.remove()
            assert_close(kept[tile, h, w] - kept[tile, 0, 0], scores[0] - scores[1])
    for cam in (AblationCAM(model, "features"), IntegratedGradCAM(model, "features", steps=2)):
        assert cam(TILES, 1).shape == (5, 12, 12)
    assert Smooth(GradCAM(model, "features"), samples=2)(TILES, 1).shape == (5, 12, 12)


def test_the_path_of_a_tile_keeps_the_other_tiles():
    model = attention_bag()
    noise_free = METHODS["smooth-grad-cam++"](model, "features", std=0.0).explain(TILES, 1)
    assert_close(noise_free.heatmaps, METHODS["grad-cam++"](model, "features")(TILES, 1))


def test_deletion_in_a_bag_changes_one_tile():
    model = attention_bag()
    with rescoring(model, TILES, 1) as rescore:
        found = rescore(torch.zeros_like(TILES[:2]), torch.tensor([3, 0]))
        bags = [TILES.clone(), TILES.clone()]
        bags[0][3], bags[1][0] = 0, 0
        expected = torch.cat([ClassProbability(1)(model(bag)) for bag in bags])
        assert_close(found, expected.detach())


class TwoTowers(nn.Module):
    """Images and prompts, each against each, as CLIP scores them."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.out = nn.Conv2d(3, 6, 3, 2, 1), nn.Embedding(20, 6), nn.Linear(6, 6)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        images = self.out(self.image(pixel_values).relu().mean((2, 3)))
        return images @ self.text(input_ids).mean(1).T


@pytest.mark.parametrize(
    "name", ["grad-cam", "score-cam", "ablation-cam", "recipro-cam", "integrated-grad-cam", "sess"]
)
@pytest.mark.parametrize("target", [1, lambda output: output[:, 1]], ids=["class", "callable"])
def test_as_many_prompts_as_images_belong_to_the_batch(name, target):
    model = build(lambda m, **inputs: m.clip(**inputs), clip=TwoTowers()).double()
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    images = TILES[:3]
    cam = METHODS[name](model, "clip.image")
    both = cam({"pixel_values": images, "input_ids": prompts}, target)
    alone = [cam({"pixel_values": image[None], "input_ids": prompts}, target) for image in images]
    assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_rows_that_belong_to_each_image_still_do():
    model = build(lambda m, x, shift: m.head(m.features(x).mean((2, 3)) + shift), **features()).double()
    shift = draw(5, 6, seed=3)
    for name in ("score-cam", "ablation-cam", "integrated-grad-cam"):
        cam = METHODS[name](model, "features")
        alone = [cam((TILES[i : i + 1], shift[i : i + 1]), 1) for i in range(5)]
        assert_close(cam((TILES, shift), 1), torch.cat(alone))


def test_rows_that_belong_to_neither_are_refused():
    def run(m: Any, x: Tensor, mixing: Tensor) -> Tensor:  # each image with the next one, by a matrix of the batch
        return m.head(mixing @ m.features(x).mean((2, 3)) if len(x) == len(mixing) else m.features(x).mean((2, 3)))

    model = build(run, **features()).double()
    with pytest.raises(CaptureError, match="neither to single images nor to the whole batch"):
        ScoreCAM(model, "features")((TILES, draw(5, 5)), lambda output: output[:, 1])
    assert issubclass(CaptureError, GradCamKitError)
