"""`TextTarget`: by hand, on CLIP and SigLIP of transformers and CLIP of open_clip, all with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build, images
from torch import Tensor, nn
from torch.testing import assert_close
from traces import unchanged

from gradcam_kit import EigenCAM, GradCAM, LayerCAM, ScoreCAM, Smooth, compare, explain_all
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import InputError, OptionError, TargetError
from gradcam_kit.targets import EmbeddingSimilarity, Negative, TextTarget

TEXTS = ["a cat", "a dog on a sofa", "snow"]
INPUT = images(3, size=(32, 32))


class Words:
    """A tokenizer as open_clip's: one token per word, between a start and an end, cut off at its length."""

    context_length, sot_token_id, eot_token_id = 8, 48, 49

    def encode(self, text: str) -> list[int]:
        return [sum(map(ord, word)) % 48 for word in text.split()]

    def __call__(self, texts: list[str]) -> Tensor:
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            own = [self.sot_token_id, *self.encode(text), self.eot_token_id][: self.context_length]
            row[: len(own)] = torch.tensor(own)
        return tokens


class Tokenizer:
    """A tokenizer as those of transformers, which fill up to a length and cut nothing off unless asked."""

    model_max_length = 1000

    def pad(self) -> None: ...

    def __call__(self, texts: list[str], padding: Any = False, max_length: int = 0, **_: Any) -> dict[str, Any]:
        ids = [[0, *(3 + token for token in Words().encode(text)), 2] for text in texts]
        ids = [[min(token, 40) if token > 2 else token for token in own] for own in ids]
        if not padding:
            return {"input_ids": ids}
        full = [own + [1] * (max_length - len(own)) for own in ids]
        return {"input_ids": torch.tensor(full), "attention_mask": torch.tensor(full) != 1}


def open_clip_model() -> nn.Module:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(8, vision, text).eval()


def hugging_face(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    shared = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    words = {"vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    options = {"projection_dim": 8} if kind == "CLIP" else {}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**shared, **words}, vision_config={**shared, "image_size": 32, "patch_size": 8}, **options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{kind}Model")(config).eval()


MODELS = {
    "open_clip": (open_clip_model, Words()),
    "CLIP": (lambda: hugging_face("CLIP"), Tokenizer()),
    "SigLIP": (lambda: hugging_face("Siglip"), Tokenizer()),
}


def embeddings(model: nn.Module, tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Of `INPUT` and of texts, without the package."""
    with torch.no_grad():
        if isinstance(tokenizer, Words):
            return model.encode_image(INPUT), model.encode_text(tokenizer(texts))
        found = model.get_text_features(**tokenizer(texts, padding="max_length", max_length=8))
        found = getattr(found, "pooler_output", found)
        pictures = model.get_image_features(INPUT)
        return getattr(pictures, "pooler_output", pictures), found


def test_scores_by_hand() -> None:
    target = TextTarget(["x", "y"], against=["z", "w"])
    assert target.all_texts == ["x", "y", "z", "w"]
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, 4.0]])
    encoded = target.with_embeddings(rows)
    output = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    # cosines with x, y, z, w: 0.6, 0.8, -0.6, 0.8 and 0, 1, 0, 1
    assert_close(encoded(output), torch.tensor([[0.5, 0.7], [-0.5, 0.5]]))
    assert_close(TextTarget("x").with_embeddings(rows[:1])(output), torch.tensor([0.6, 0.0]))
    assert encoded.select(torch.tensor([1, 1])) is encoded
    assert repr(target) == "TextTarget(texts=['x', 'y'], against=['z', 'w'])"


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_of_the_images_gives_a_map_for_each_text(name: str) -> None:
    make, tokenizer = MODELS[name]
    model = make()
    pictures, texts = embeddings(model, tokenizer, TEXTS)
    calls: list[int] = []
    tower = model.visual if name == "open_clip" else model.vision_model
    handle = tower.register_forward_hook(lambda _, arguments, __: calls.append(len(INPUT)))
    chosen = LayerCAM(model).explain(INPUT, TextTarget(TEXTS, tokenizer=tokenizer)).layers
    cam = LayerCAM(model, chosen)
    calls.clear()
    with unchanged(model, INPUT):
        found = cam.explain(INPUT, TextTarget(TEXTS, tokenizer=tokenizer))
    assert calls == [3]
    handle.remove()
    assert found.heatmaps.shape == (3, 3, 32, 32)
    expected = torch.nn.functional.cosine_similarity(pictures[:, None], texts[None], dim=2)
    assert_close(found.scores, expected, rtol=0, atol=1e-5)
    for place, text in enumerate(TEXTS):
        alone = cam.explain(INPUT, TextTarget(text, tokenizer=tokenizer))
        assert_close(alone.scores, found.scores[:, place])
        assert_close(alone.heatmaps, found.heatmaps[:, place], rtol=0, atol=1e-5)


def test_the_map_is_the_one_of_the_embedding() -> None:
    model, tokenizer = open_clip_model(), Words()
    _, texts = embeddings(model, tokenizer, TEXTS[:1])
    layer = "transformer.resblocks.1"
    expected = GradCAM(model.visual, layer).explain(INPUT, EmbeddingSimilarity(texts[0]))
    found = GradCAM(model, f"visual.{layer}").explain(INPUT, TextTarget(TEXTS[0], tokenizer=tokenizer))
    assert_close(found.scores, expected.scores)
    assert_close(found.saliency[f"visual.{layer}"], expected.saliency[layer])


@pytest.mark.parametrize("name", ["open_clip", "SigLIP"])
def test_everything_takes_texts(name: str) -> None:
    make, tokenizer = MODELS[name]
    model = make()
    model.tokenizer = tokenizer
    layer = "visual.transformer.resblocks.1" if name == "open_clip" else "vision_model.encoder.layers.1"
    target = TextTarget(TEXTS[0], against=TEXTS[1:])
    cam = GradCAM(model, layer)
    found = cam.explain(INPUT, target)
    assert_close(cam.explain(INPUT, Negative(target)).scores, -found.scores)
    assert Smooth(cam, samples=2).explain(INPUT, target).heatmaps.shape == (3, 32, 32)
    together = explain_all([cam, EigenCAM(model, layer)], INPUT, target)
    assert torch.equal(together[0], found.heatmaps)
    masked = ScoreCAM(model, layer, channels=2).explain(INPUT, TextTarget(TEXTS, tokenizer=tokenizer))
    assert masked.saliency[layer].shape[:2] == (3, 3)
    with rescoring(model, INPUT, target, probability=False) as rescore:
        assert_close(rescore(INPUT, torch.arange(3)), found.scores)
    table = compare(model, INPUT, methods=["grad-cam"], target_layers=layer, targets=target).table
    assert len(table) == 3


def test_refused_texts_say_what_is_wrong() -> None:
    model, layer = open_clip_model(), "visual.transformer.resblocks.1"

    def explain(texts: Any, model: nn.Module = model, **options: Any) -> Tensor:
        return GradCAM(model, layer)(INPUT, TextTarget(texts, **options))

    for tokenizer, other in ((Words(), model), (Tokenizer(), hugging_face("CLIP"))):
        with pytest.raises(
            TargetError, match=r"'one two three four five six seven' has 9 tokens, .* at most 8; shorten"
        ):
            LayerCAM(other)(INPUT, TextTarget(["a", "one two three four five six seven"], tokenizer=tokenizer))
    with pytest.raises(TargetError, match=r"need the tokenizer of CLIP, .* pass TextTarget\(texts, tokenizer="):
        explain("a cat")
    with pytest.raises(TargetError, match="tokenizer returned list"):
        explain("a cat", tokenizer=lambda texts: [[1]])
    with pytest.raises(TargetError, match="returned 9 tokens, but the model accepts at most 8"):
        explain("a cat", tokenizer=lambda texts: torch.zeros(1, 9).long())
    for tokens in (torch.zeros(1, 3).long(), torch.full((1, 8), 10**6)):
        with pytest.raises(
            TargetError,
            match=r"^CLIP cannot encode this tokenizer's tokens of shape \(1, .\) .*; pass the model's own tokenizer$",
        ):
            explain("a cat", tokenizer=lambda texts, tokens=tokens: tokens)
    plain = build(lambda m, x: m.head(m.layer(x).mean((2, 3))), layer=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 2))
    with pytest.raises(TargetError, match="cannot embed texts; TextTarget needs encode_image"):
        GradCAM(plain, "layer")(INPUT, TextTarget("a cat"))
    with pytest.raises(TargetError, match="not encoded"):
        TextTarget("a cat")(torch.ones(1, 8))
    for given, message in (([], r"\[\]; expected at least one"), ([" "], "no empty text"), (3, "an int")):
        with pytest.raises(InputError, match=message):
            TextTarget(given)
    with pytest.raises(InputError, match="against is a list of int"):
        TextTarget("a cat", against=[1])
    with pytest.raises(TargetError, match=r"encodes 1 texts as \(2, 3\)"):
        TextTarget("a cat").with_embeddings(torch.ones(2, 3))


@pytest.mark.parametrize("name", MODELS)
def test_a_check_randomizes_the_tower_of_images(name: str) -> None:
    make, tokenizer = MODELS[name]
    model, embedded = make(), []
    tower = "encode_text" if hasattr(model, "encode_text") else "get_text_features"
    embed = getattr(model, tower)
    setattr(model, tower, lambda *args, **kwargs: embedded.append(1) or embed(*args, **kwargs))
    with torch.inference_mode():  # embeddings made in it could not enter a graph
        checked = GradCAM(model).check(INPUT, TextTarget(TEXTS, tokenizer=tokenizer))
    assert len(embedded) == 1
    assert checked.passed
    assert checked.parameters.abs().max() < 0.9
    assert not checked.is_unreached.any()


def test_metrics_of_several_texts_are_refused_and_of_one_measured() -> None:
    make, tokenizer = MODELS["CLIP"]
    several = TextTarget(TEXTS, tokenizer=tokenizer)
    with pytest.raises(OptionError, match=f"one map per image, but this target gives {len(TEXTS)}; compare one"):
        compare(make(), INPUT, ["grad-cam"], targets=several, metrics="deletion")
    one = TextTarget(TEXTS[0], tokenizer=tokenizer)
    found = compare(make(), INPUT, ["grad-cam"], targets=one, metrics="deletion")
    assert found.measured["grad-cam"]["deletion"].values.shape == (len(INPUT),)
