"""Tokens are positions only where their values come from the positions of the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import TinyViT, build, images, seeded, tiny
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit import METHODS, GradCAM
from gradcam_kit.capture import read_inputs
from gradcam_kit.capture.layouts import ChannelsFirst, ChannelsLast, Tokens
from gradcam_kit.capture.provenance import evidence
from gradcam_kit.errors import CaptureError, GradCamKitError, ShapeError


def tower() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())


def verdicts(model: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """What is found out about each module: a layout or a reason."""
    model = model.eval()
    found = evidence.gather(model, read_inputs(inputs if len(inputs) > 1 else inputs[0], {}))
    names = {module: name for name, module in model.named_modules()}
    return {names[module]: own[0].layout or own[0].reason for module, own in found.verdicts.items()}


def heads(m: Any, x: Tensor) -> Tensor:
    """Single-headed attention whose blocks are all there is, with registers behind the patches."""
    x = torch.cat([x, m.extra.expand(len(x), -1, -1)], 1)
    return m.fc(m.norm(x + (m.q(x) @ m.k(x).mT).softmax(-1) @ m.v(x))[:, -1])


def with_suffix(count: int = 3) -> nn.Module:
    model = build(
        lambda m, x: heads(m, m.patch(x).flatten(2).mT),
        patch=nn.Conv2d(3, 6, 4, 4), q=nn.Linear(6, 6), k=nn.Linear(6, 6), v=nn.Linear(6, 6), norm=nn.LayerNorm(6),
        fc=nn.Linear(6, 3),
    )  # fmt: skip
    model.extra = nn.Parameter(torch.randn(1, count, 6, generator=torch.Generator().manual_seed(3)))
    return model


# Patches


def test_the_grid_is_that_of_the_patch_embedding_whatever_the_number_of_other_tokens() -> None:
    for prefix in (1, 2, 5):  # 2 + 16 and 5 + 16 tokens; nothing but the values says which ones are patches
        found = verdicts(seeded(TinyViT(prefix=prefix)), images(2))
        assert found["patch"] == ChannelsFirst()
        assert found["blocks.0.norm1"] == found["norm"] == Tokens((4, 4), prefix)
    assert verdicts(with_suffix(9), images(2))["norm"] == Tokens((4, 4), 0, 9)  # 25 tokens are no grid of 5 x 5


def test_maps_of_patches_in_front_of_other_tokens_equal_those_by_hand() -> None:
    model, x = with_suffix(9), images(2)
    by_hand = GradCAM(model, "k", reshape=lambda tokens: tokens[:, :16].mT.unflatten(2, (4, 4))).explain(x, 1)
    found = GradCAM(model, "k").explain(x, 1)
    assert torch.equal(found.saliency["k"], by_hand.saliency["k"])
    assert found.heatmaps.any()
    assert METHODS["score-cam"](model, "k")(x, 1).shape == (2, 16, 16)


def test_patches_cut_by_hand_and_tokens_in_another_order() -> None:
    def cut(m: Any, x: Tensor) -> Tensor:
        patches = x.unflatten(2, (2, 8)).unflatten(4, (4, 4)).permute(0, 4, 2, 1, 3, 5).flatten(3).flatten(1, 2)
        return m.fc(m.embed(patches).mean(1))  # column after column

    model, x = build(cut, embed=nn.Linear(96, 6), fc=nn.Linear(6, 3)), images(2)
    layout = Tokens((2, 4), 0, 0, (0, 2, 4, 6, 1, 3, 5, 7))
    assert verdicts(model, x)["embed"] == layout
    output = torch.arange(16.0).view(1, 8, 2)
    assert layout.to_maps(output)[0, 0].tolist() == [[0, 4, 8, 12], [2, 6, 10, 14]]
    assert torch.equal(layout.to_native(layout.to_maps(output), output), output)


def test_pooled_windowed_and_mixed_tokens_keep_their_places() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        maps = m.patch(x).movedim(1, -1)
        shifted = (
            m.window(maps.roll((1, 1), (1, 2)).unflatten(1, (2, 2)).unflatten(3, (2, 2))).flatten(3, 4).flatten(1, 2)
        )
        maps = m.norm(maps + shifted.roll((-1, -1), (1, 2)))
        merged = m.merge(torch.cat([maps[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)).flatten(1, 2)
        return m.fc(m.last(merged + m.mix(merged.mT).mT).mean(1))

    parts = {"patch": nn.Conv2d(3, 6, 4, 4), "window": nn.Linear(6, 6), "norm": nn.LayerNorm(6), "fc": nn.Linear(6, 3)}
    model = build(run, merge=nn.Linear(24, 6), mix=nn.Linear(4, 4), last=nn.LayerNorm(6), **parts)
    found = verdicts(model, images(2))
    assert found["norm"] == found["merge"] == ChannelsLast()
    assert found["last"] == Tokens((2, 2), 0)
    assert "last axis" in found["mix"] or "tokens" in found["mix"]  # mixes all positions: (n, k, tokens)


# Words


class Words(nn.Module):
    """A network of pictures beside one of words: `act` has as many channels as an 8 x 8 picture has positions."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.embed, self.norm = tower(), nn.Embedding(50, 8), nn.LayerNorm(8)
        self.conv, self.act, self.fc = nn.Conv1d(8, 64, 3, padding=1), nn.ReLU(), nn.Linear(72, 3)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        text = self.act(self.conv(self.norm(self.embed(words)).mT)).amax(2)
        return self.fc(torch.cat([self.image(image).mean((2, 3)), text], 1))


@pytest.mark.parametrize("length", [4, 9, 16])
def test_words_are_no_positions_of_a_picture(length: int) -> None:
    model, words = seeded(Words()), torch.arange(2 * length).view(2, length)
    assert GradCAM(model).explain((images(2), words)).layers == ("image",)
    for layer in ("embed", "norm", "act", "conv"):
        with pytest.raises(
            ShapeError, match=rf"layer '{layer}' returned .*depends on other inputs, not on the images.*reshape="
        ):
            GradCAM(model, layer)((images(2), words))


def test_words_and_patches_in_one_sequence_are_no_grid() -> None:
    class Mixed(TinyViT):
        def __init__(self) -> None:
            super().__init__(prefix=0, pool="mean")
            self.words = nn.Embedding(50, 8)

        def forward(self, image: Tensor, words: Tensor) -> Tensor:
            tokens = torch.cat([self.words(words), self.patch(image).flatten(2).mT], 1)
            return self.head(self.norm(self.blocks(tokens)).mean(1))

    model, inputs = seeded(Mixed()), (images(2), torch.arange(18).view(2, 9))  # 9 words + 16 patches = 5 x 5
    assert GradCAM(model).explain(inputs).layers == ("patch",)
    with pytest.raises(ShapeError, match="only 16 of its 25 tokens come from the images, the others from other inputs"):
        GradCAM(model, "norm")(inputs)
    with pytest.raises(CaptureError, match="no attention among the tokens of an image"):
        METHODS["attention-rollout"](model)(inputs)


# Queries, anchors and box sides


@pytest.mark.parametrize("queries", [4, 9, 16])
def test_queries_are_no_positions_even_on_the_grid_of_the_patches(queries: int) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        tokens = m.encoder(m.patch(x).flatten(2).mT)
        asked = m.query(m.queries.weight.expand(len(x), -1, -1))
        return m.fc(m.decoder(asked + (asked @ tokens.mT).softmax(-1) @ tokens).amax(1))

    model = build(
        run, patch=nn.Conv2d(3, 6, 4, 4), encoder=nn.LayerNorm(6), queries=nn.Embedding(queries, 6),
        query=nn.Linear(6, 6), decoder=nn.LayerNorm(6), fc=nn.Linear(6, 3),
    )  # fmt: skip
    assert GradCAM(model).explain(images(2)).layers == ("encoder",)
    with pytest.raises(ShapeError, match=f"each of its {queries} tokens gathers from all of the image, as queries do"):
        GradCAM(model, "decoder")(images(2))
    with pytest.raises(ShapeError, match="does not depend on the images"):
        GradCAM(model, "query")(images(2))


def test_anchors_of_several_levels_lie_on_no_grid() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        fine = m.fine(x)
        return m.fc(m.norm(torch.cat([fine.flatten(2).mT, m.coarse(fine).flatten(2).mT], 1)).amax(1))

    model = build(run, fine=tower(), coarse=nn.Conv2d(8, 8, 2, 2), norm=nn.LayerNorm(8), fc=nn.Linear(8, 3))
    with pytest.raises(
        ShapeError, match="its 80 tokens do not lie on a single grid of positions; they may be anchors of several"
    ):
        GradCAM(model, "norm")(images(2))
    assert GradCAM(model).explain(images(2)).layers[0] in ("coarse", "fine")


@pytest.mark.parametrize("name", ["eigen-cam", "grad-cam", "hires-cam"])
def test_sides_of_boxes_are_no_picture_of_2_by_2(name: str) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        maps = m.features(x)
        sides = m.sides(maps).flatten(2).unflatten(1, (4, 4)).transpose(1, 2).softmax(1)
        return torch.cat([m.expected(m.mean(sides).flatten(1, 2)).mean(2), m.classes(maps).mean((2, 3))], 1)

    model = build(
        run, features=tower(), sides=nn.Conv2d(8, 16, 1), mean=nn.Conv2d(4, 1, 1), expected=nn.Identity(),
        classes=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    found = METHODS[name](model).explain(images(2), 5)
    assert found.saliency[found.layers[0]].shape == (2, 8, 8)
    for layer in ("expected", "mean"):
        with pytest.raises(ShapeError, match=f"layer '{layer}' returned"):
            METHODS[name](model, layer)(images(2), 5)


# What it costs, and what it leaves


def test_plain_convolutional_networks_are_not_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_look", lambda *_: pytest.fail("a network without tokens was observed"))
    square = build(lambda m, x: m.fc(m.body(x).mean((2, 3))), body=tower(), fc=nn.Linear(8, 3))  # 8 x 8 x 8
    for model in (tiny(), square):
        assert GradCAM(model)(images(2)).shape == (2, 16, 16)
    assert GradCAM(tiny(), "relu2")(images(2)).shape == (2, 16, 16)


def test_a_model_is_observed_once_for_inputs_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    model, look, seen = seeded(TinyViT()), evidence._look, []

    def counted(*given: Any) -> Any:
        seen.append(given)
        return look(*given)

    monkeypatch.setattr(evidence, "_look", counted)
    for layer in (None, "blocks.1.norm1", "blocks.0.norm1"):
        for n in (1, 2, 3):
            GradCAM(model, layer)(images(n))
    assert len(seen) == 1


def test_observing_leaves_no_trace_and_changes_no_value() -> None:
    model, x = seeded(TinyViT()).train(), images(3)
    with unchanged(model, x):
        evidence.gather(model, read_inputs(x, {}))
        GradCAM(model, "blocks.1.norm1")(x)
    assert torch.equal(GradCAM(model, "blocks.1.norm1")(x), GradCAM(seeded(TinyViT()), "blocks.1.norm1")(x))


def test_what_cannot_be_followed_is_refused_by_name_and_not_chosen() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        tokens = torch.fft.fft(m.patch(x).flatten(2).mT, dim=1).real
        return m.fc(m.norm(tokens).mean(1))

    model = build(run, patch=nn.Conv2d(3, 6, 4, 4), norm=nn.LayerNorm(6), fc=nn.Linear(6, 3))
    with pytest.raises(ShapeError, match=r"layer 'norm' .*are lost after aten\._fft_r2c"):
        GradCAM(model, "norm")(images(2))
    assert GradCAM(model).explain(images(2)).layers == ("patch",)
    by_hand = GradCAM(model, "norm", reshape=lambda tokens: tokens.mT.unflatten(2, (4, 4)))
    assert by_hand.explain(images(2)).saliency["norm"].shape == (2, 4, 4)


def test_errors_of_the_model_are_its_own() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        raise RuntimeError("of the model")

    with pytest.raises(RuntimeError, match="of the model") as raised:
        GradCAM(build(run, fc=nn.Linear(6, 3)))(images(2))
    assert not isinstance(raised.value, GradCamKitError)
