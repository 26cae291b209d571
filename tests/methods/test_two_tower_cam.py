"""Two towers: maps of a picture and weights of tokens, against the formulas in float64, for any pair of towers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradcam_kit import GradCAM, two_tower_cam
from gradcam_kit.errors import CaptureError, InputError, LayerNotFoundError, ShapeError
from gradcam_kit.targets import EmbeddingSimilarity


class Picture(nn.Sequential):
    def __init__(self, size: int = 6) -> None:
        pool = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, size)
        super().__init__(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), *pool, nn.Dropout(0.5))


class Text(nn.Module):
    def __init__(self, size: int = 6, pooled: str = "mean") -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(20, 4), nn.LSTM(4, 4, batch_first=True)
        self.out, self.pooled = nn.Linear(4, size), pooled

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.out(torch.tanh(self.mix(self.words(tokens))[0]))
        return hidden.mean(1) if self.pooled == "mean" else hidden[:, -1]


class Fusion(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(10, 7), nn.Linear(7, classes)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.cat([image, text], 1))))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 9, 9)


TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])


def by_hand(text: Text, tokens: Tensor, image: Tensor) -> Tensor:
    """Norms over channels of gradient times activation at the word embeddings, from the definition, in float64."""
    words = nn.functional.embedding(tokens, text.words.weight.detach().double()).requires_grad_()
    weights = {name: own.detach().double() for name, own in text.state_dict().items()}
    states, h, c = [], torch.zeros(len(tokens), 4).double(), torch.zeros(len(tokens), 4).double()
    for t in range(tokens.shape[1]):
        gates = words[:, t] @ weights["mix.weight_ih_l0"].T + weights["mix.bias_ih_l0"]
        gates = gates + h @ weights["mix.weight_hh_l0"].T + weights["mix.bias_hh_l0"]
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(torch.tanh(h) @ weights["out.weight"].T + weights["out.bias"])
    embedding = states[-1] if text.pooled == "last" else torch.stack(states, 1).mean(1)
    image = image.double()
    cosine = (embedding * image).sum(1) / (embedding.norm(dim=1) * image.norm(dim=1))
    (gradient,) = torch.autograd.grad(cosine.sum(), words)
    return (gradient * words.detach()).norm(dim=2)


@pytest.mark.parametrize("pooled", ["mean", "last"])
def test_tokens_equal_the_definition(images: Tensor, pooled: str) -> None:
    picture, text = Picture(), Text(pooled=pooled)
    found = two_tower_cam(picture, text, images, TOKENS, text_layer="words")
    expected = by_hand(text, TOKENS, found.image_embeddings)
    assert torch.allclose(found.token_saliency.double(), expected, rtol=1e-4)
    assert torch.allclose(found.tokens.amax(1), torch.ones(3))
    picture.eval()
    assert torch.allclose(found.scores, torch.cosine_similarity(picture(images), text(TOKENS)).detach(), atol=1e-6)


def test_the_picture_is_explained_as_by_the_method_alone(images: Tensor) -> None:
    picture, text = Picture(), Text()
    found = two_tower_cam(picture, text, images, TOKENS, image_layer="0")
    with torch.no_grad():
        target = EmbeddingSimilarity(text(TOKENS))
    alone = GradCAM(picture, "0").explain(images, target)
    assert torch.equal(found.heatmaps, alone.heatmaps)
    assert torch.allclose(found.scores, alone.scores, atol=1e-6)
    assert found.image_layers == ("0",)
    assert two_tower_cam(picture, text, images, TOKENS, method="layer-cam").heatmaps.shape == (3, 9, 9)


def test_the_layer_of_the_text_is_the_last_one_at_which_several_tokens_count(images: Tensor) -> None:
    assert two_tower_cam(Picture(), Text(), images, TOKENS).text_layer == "out"
    # Behind the recurrent layer only the last token counts.
    found = two_tower_cam(Picture(), Text(pooled="last"), images, TOKENS)
    assert found.text_layer == "words"
    assert (found.token_saliency > 0).all()


def test_a_batch_equals_its_pairs_one_by_one(images: Tensor) -> None:
    picture, text = Picture(), Text()
    together = two_tower_cam(picture, text, images, TOKENS)
    square = two_tower_cam(picture, text, images, TOKENS[:, :3])  # as many texts as tokens
    for i in range(3):
        alone = two_tower_cam(picture, text, images[i : i + 1], TOKENS[i : i + 1])
        assert torch.allclose(alone.tokens[0], together.tokens[i], atol=1e-5)
        assert torch.allclose(alone.heatmaps[0], together.heatmaps[i], atol=1e-5)
        alone = two_tower_cam(picture, text, images[i : i + 1], TOKENS[i : i + 1, :3])
        assert torch.allclose(alone.tokens[0], square.tokens[i], atol=1e-5)
    one_text = two_tower_cam(picture, text, images, TOKENS[:1])
    assert one_text.scores.shape == (3,)
    assert torch.allclose(one_text.tokens[0], together.tokens[0], atol=1e-5)
    assert two_tower_cam(picture, text, images[:1], TOKENS).heatmaps.shape == (3, 9, 9)


def test_a_fusion_module_is_explained_in_the_same_call(images: Tensor) -> None:
    picture, text, fusion = Picture(5), Text(5), Fusion()
    found = two_tower_cam(picture, text, images, TOKENS, text_layer="words", fusion=fusion, targets=1)
    picture.eval()
    image = picture(images).detach().requires_grad_()
    words = text.words(TOKENS).detach().requires_grad_()
    told = text.out(torch.tanh(text.mix(words)[0])).mean(1)
    hidden = fusion.hidden(torch.cat([image, told], 1))
    scores = fusion.out(torch.tanh(hidden))[:, 1]
    of_words, of_hidden, of_image, of_text = torch.autograd.grad(scores.sum(), [words, hidden, image, told])
    assert found.fusion_layer == "hidden"
    assert torch.allclose(found.scores, scores.detach(), atol=1e-5)
    assert torch.allclose(found.fusion, (of_hidden * hidden).detach().abs(), atol=1e-6)
    assert torch.allclose(found.token_saliency, (of_words * words).detach().norm(dim=2), atol=1e-6)
    sizes = torch.stack([(of_image * image).norm(dim=1), (of_text * told).norm(dim=1)], 1).detach()
    assert torch.allclose(found.modalities, sizes / sizes.sum(1, keepdim=True), atol=1e-5)
    named = two_tower_cam(picture, text, images, TOKENS, fusion=fusion, fusion_layer="out", targets=1)
    assert named.fusion.shape == (3, 3)
    assert two_tower_cam(picture, text, images, TOKENS, fusion=fusion).scores.shape == (3,)  # predicted classes


def test_towers_are_left_as_they_were(images: Tensor) -> None:
    picture, text, fusion = Picture(5).train(), Text(5).train(), Fusion().train()
    parts = nn.ModuleList([picture, text, fusion])
    before, random = {name: own.clone() for name, own in parts.state_dict().items()}, torch.get_rng_state()
    two_tower_cam(picture, text, images, TOKENS, fusion=fusion)
    with pytest.raises(LayerNotFoundError):
        two_tower_cam(picture, text, images, TOKENS, fusion=fusion, fusion_layer="nothing")
    assert all(torch.equal(own, before[name]) for name, own in parts.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(own.training for own in parts.modules())
    assert all(own.requires_grad and own.grad is None for own in parts.parameters())
    assert not any(own._forward_hooks or own._forward_pre_hooks for own in parts.modules())


def test_what_cannot_be_compared_is_one_line(images: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"image tower returns embeddings of 6 numbers and the text tower of 5; a cos"):
        two_tower_cam(Picture(6), Text(5), images, TOKENS)
    with pytest.raises(ShapeError, match="3 images and 2 texts"):
        two_tower_cam(Picture(), Text(), images, TOKENS[:2])
    with pytest.raises(InputError, match="text_tower is a function"):
        two_tower_cam(Picture(), lambda tokens: tokens, images, TOKENS)
    with pytest.raises(InputError, match="tokenize the texts first"):
        two_tower_cam(Picture(), Text(), images, ["a dog"] * 3)
    with pytest.raises(LayerNotFoundError, match="Text has no layer 'word'; did you mean 'words'"):
        two_tower_cam(Picture(), Text(), images, TOKENS, text_layer="word")
    with pytest.raises(CaptureError, match="returned no tensor that fits"):
        two_tower_cam(Picture(), Bag(), images, TOKENS, text_layer="words")


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(20, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.words(tokens)


@pytest.mark.parametrize("custom", [False, True])
def test_open_clip(custom: bool) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install gradcam-kit[models]")
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    model = kind(16, vision, text)
    nn.init.normal_(model.text.text_projection if custom else model.text_projection)
    tokens = torch.tensor([[48, 3, 4, 49, 0, 0, 0, 0], [48, 5, 6, 7, 8, 49, 0, 0]])
    found = two_tower_cam(model.encode_image, model.encode_text, torch.rand(2, 3, 32, 32), tokens)
    assert found.heatmaps.shape == (2, 32, 32)
    assert not found.heatmaps.isnan().any()
    assert found.text_layer.endswith("1.ln_1")
    # Tokens behind the end of the text are not seen by it.
    assert ((found.tokens > 0).sum(1) == torch.tensor([4, 6])).all()
    if custom:
        parts = two_tower_cam(model.visual, model.text, torch.rand(2, 3, 32, 32), tokens)
        assert parts.text_layer == "transformer.resblocks.1.ln_1"
