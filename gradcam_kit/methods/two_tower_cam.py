"""Grad-CAM (https://arxiv.org/abs/1610.02391) of the similarity of an image and a text, for both towers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import TowerPass, find_layers, map_output, tower_pass, untouched
from gradcam_kit.errors import CaptureError, InputError, ShapeError, kind_of
from gradcam_kit.functional import at_least_float32
from gradcam_kit.methods.arithmetic.pair_scores import FusedScore, PairCosine, floating_in
from gradcam_kit.methods.contract import METHODS


@dataclass(frozen=True, eq=False)
class TwoTowerExplanation:
    """Result of `two_tower_cam`.

    Attributes:
        heatmaps: `(n, *t)` in [0, 1] at the size of the images.
        tokens: `(n, tokens)` weight of each token in [0, 1]; the largest of each text is 1, unless no gradient reaches
            the tokens.
        token_saliency: `(n, tokens)` norms of gradient times activation, not normalized.
        scores: `(n,)` cosine similarities, or the scores of the fusion module.
        fusion: gradient times activation at the fusion layer: its norms `(n, tokens)` for a layer with tokens, its
            absolute values `(n, k)` for a layer of units; None without a fusion module.
        modalities: `(n, 2)` norms of gradient times embedding for image and text, divided by their sum; None without a
            fusion module.
        image_embeddings: output of the image tower.
        text_embeddings: output of the text tower.
        image_layers: names of the layers of the image tower.
        text_layer: name of the layer of the text tower.
        fusion_layer: name of the layer of the fusion module; "" without one.
    """

    heatmaps: Float[Tensor, "n *t"]
    tokens: Float[Tensor, "n tokens"]
    token_saliency: Float[Tensor, "n tokens"]
    scores: Float[Tensor, " n"]
    fusion: Float[Tensor, "n *s"] | None
    modalities: Float[Tensor, "n 2"] | None
    image_embeddings: Any
    text_embeddings: Any
    image_layers: tuple[str, ...]
    text_layer: str
    fusion_layer: str = ""


def two_tower_cam(
    image_tower: Any,
    text_tower: Any,
    images: Float[Tensor, "n c *t"],
    texts: Any,
    *,
    image_layer: Any = None,
    text_layer: Any = None,
    fusion: nn.Module | None = None,
    fusion_layer: Any = None,
    targets: Any = None,
    method: str = "grad-cam",
) -> TwoTowerExplanation:
    r"""Explain the similarity of an image and a text: a map of the image and a weight for each token, in one call.

    The score is the cosine similarity of the two embeddings, or the output of `fusion`. The image's map is that of
    `method` at `image_layer`. A token's weight is the norm over channels of gradient times activation at `text_layer`,
    $\lVert \partial s / \partial a_t \odot a_t \rVert_2$; there is no accepted ground truth for such weights. With
    Grad-CAM, the call runs one forward and one backward pass of each tower. Both towers remain unchanged.

    Args:
        image_tower: a module, or a method of a module (`model.encode_image`), that returns embeddings `(n, d)`.
        text_tower: a module, or a method of a module, that returns embeddings `(n, d)` of texts.
        images: `(n, c, *t)`; a single image is compared with every text.
        texts: input of the text tower: token indices `(n, t)`, or a mapping of its keyword arguments. A single text is
            compared with every image.
        image_layer: as `target_layers` of a method; None = chosen automatically.
        text_layer: name or module whose output is `(n, t, k)`; None = the last layer at which the gradient reaches more
            than one token, because after this layer the score depends only on the pooled token.
        fusion: a module that is called with the outputs of both towers and returns scores or logits.
        fusion_layer: name or module inside `fusion`; None = the last layer before the output of `fusion`, or the
            embedding of the image if there is no such layer.
        targets: the explained logit of the fusion module: an int, class indices `(n,)` or a callable; None = the
            predicted class.
        method: name of a method in `METHODS`, for the image.

    Raises:
        ShapeError: towers whose embeddings differ in size, or unequal numbers of texts and images.
        InputError: a tower that is neither a module nor a method of a module, or texts without token indices.
        CaptureError: no layer of the text tower has tokens on which the score depends.
        LayerNotFoundError: a layer that a tower does not have.

    Example:
        >>> image_tower = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> class Words(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words = nn.Embedding(10, 8)
        ...     def forward(self, tokens):
        ...         return self.words(tokens).mean(1)
        >>> found = two_tower_cam(image_tower, Words(), torch.rand(2, 3, 8, 8), torch.tensor([[1, 2, 3], [4, 5, 6]]))
        >>> found.heatmaps.shape, found.tokens.shape, found.text_layer
        (torch.Size([2, 8, 8]), torch.Size([2, 3]), 'words')
    """
    image, text = _Tower.of(image_tower, "image_tower"), _Tower.of(text_tower, "text_tower")
    if fusion is not None and not isinstance(fusion, nn.Module):
        raise InputError(f"fusion is {kind_of(fusion)}; expected a module that accepts the outputs of both towers")
    images, texts, n, length = _pairs(images, texts)
    device = images.device
    padded = _with_extra_row(texts, n) if n == length else texts
    rows = n + (n == length)

    def has_tokens(tensor: Tensor) -> bool:
        return tensor.ndim == 3 and tuple(tensor.shape[:2]) in ((rows, length), (length, rows))

    args, kwargs = ((), dict(padded)) if isinstance(padded, Mapping) else ((padded,), {})
    with torch.inference_mode(False), ExitStack() as stack:
        if fusion is not None:
            stack.enter_context(untouched(fusion, device))
        passed = stack.enter_context(tower_pass(text, args, kwargs, text.find(text_layer), has_tokens, device))
        output = map_output(lambda leaf: leaf[:n] if leaf.ndim and len(leaf) == rows else leaf, passed.output)
        score: PairCosine | FusedScore = PairCosine(output) if fusion is None else FusedScore(fusion, output, targets)
        explained = METHODS[method](image, image.find(image_layer)).explain(images, score.detached())
        with torch.enable_grad():
            if isinstance(score, FusedScore):
                fused, gradients, scores = _fuse(fusion_layer, explained.output, output, score, passed)
            else:
                scores = score(explained.output)
                fused, gradients = _NO_FUSION, passed.gradients(scores)
        name, saliency = _token_saliency(passed, gradients, rows, length)
    saliency = saliency[:n]
    highest = saliency.amax(1, keepdim=True)
    return TwoTowerExplanation(
        heatmaps=explained.heatmaps,
        tokens=saliency / highest.where(highest > 0, 1),
        token_saliency=saliency,
        scores=at_least_float32(scores.detach()).float(),
        fusion=fused[1],
        modalities=fused[2],
        image_embeddings=explained.output,
        text_embeddings=map_output(lambda leaf: leaf.detach(), output),
        image_layers=tuple(layer.removeprefix("owner.") for layer in explained.layers),
        text_layer=name.removeprefix("owner."),
        fusion_layer=fused[0],
    )


_Fusion = tuple[str, Tensor | None, Tensor | None]
_NO_FUSION: _Fusion = ("", None, None)


class _Tower(nn.Module):
    """A module whose forward pass calls another module, or a method of one such as `model.encode_text`."""

    def __init__(self, owner: nn.Module, function: Any) -> None:
        super().__init__()
        self.owner, self.function = owner, function
        self.training = owner.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def find(self, layer: Any) -> Any:
        """Return a module unchanged, or the name of a layer with the prefix that it has in this module."""
        if isinstance(layer, list | tuple):
            return [self.find(one) for one in layer]
        if isinstance(layer, str):
            find_layers(self.owner, layer, self.owner)  # raises errors that use the names of the user's model
            return f"owner.{layer}"
        return layer

    @classmethod
    def of(cls, tower: Any, name: str) -> _Tower:
        owner = tower if isinstance(tower, nn.Module) else getattr(tower, "__self__", None)
        if not isinstance(owner, nn.Module):
            raise InputError(
                f"{name} is {kind_of(tower)}; expected a torch.nn.Module or a method of one, such as model.encode_text"
            )
        return cls(owner, tower)


def _pairs(images: Tensor, texts: Any) -> tuple[Tensor, Any, int, int]:
    """Return images and texts in equal number, their number, and the number of tokens of each text."""
    tensors = list(texts.values()) if isinstance(texts, Mapping) else [texts]
    tokens = next((one for one in tensors if isinstance(one, Tensor) and one.ndim in (2, 3)), None)
    if tokens is None:
        raise InputError(
            f"texts is {kind_of(texts)} without a tensor (n, tokens); tokenize the texts first, and pass the token "
            "indices or a mapping of the text tower's keyword arguments"
        )
    n, m = len(images), len(tokens)
    if 0 in (n, m) or (n != m and 1 not in (n, m)):
        raise ShapeError(
            f"got {n} images and {m} texts; expected one text for each image, one text for all images, or one image "
            "for all texts"
        )
    if n < m:
        images = images.expand(m, *images.shape[1:])
    if m < n:
        texts = map_output(lambda one: one.expand(n, *one.shape[1:]) if one.ndim and len(one) == m else one, texts)
    return images, texts, max(n, m), tokens.shape[1]


def _with_extra_row(texts: Any, n: int) -> Any:
    """Repeat the last text, so that the axis of the samples and the axis of the tokens differ in size."""
    return map_output(lambda one: torch.cat([one, one[-1:]]) if one.ndim and len(one) == n else one, texts)


def _token_saliency(
    passed: TowerPass, gradients: list[Tensor | None], rows: int, length: int
) -> tuple[str, Float[Tensor, "n tokens"]]:
    """Return the last layer where several tokens have a gradient, and its norms of gradient times activation.

    Without such a layer, it is the last layer that has a gradient.
    """
    best: tuple[str, Tensor] | None = None
    for (name, activations), gradient in reversed(list(zip(passed.recorded.items(), gradients, strict=True))):
        if gradient is None:
            continue
        product = at_least_float32(gradient) * at_least_float32(activations.detach())
        if tuple(product.shape[:2]) != (rows, length):
            product = product.transpose(0, 1)
        saliency = torch.linalg.vector_norm(product, dim=-1)
        reached = (saliency > 0).sum(1).amax()
        if bool(reached > min(1, length - 1)):
            return name, saliency.float()
        if best is None:
            best = name, saliency.float()
    if best is None:
        raise CaptureError(
            "the score depends on no layer of the text tower that returns (n, tokens, k); name a layer with text_layer="
        )
    return best


def _fuse(
    layer: Any, image_output: Any, text_output: Any, score: FusedScore, passed: TowerPass
) -> tuple[_Fusion, list[Tensor | None], Tensor]:
    """Return the layer, norms and shares of the fusion, the gradients at the text tower's layers, and the scores."""
    image_output = map_output(
        lambda leaf: leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf, image_output
    )
    ends = [floating_in(image_output), floating_in(text_output)]
    n = len(ends[0])
    device = ends[0].device
    fits = partial(_has_rows, n)
    with tower_pass(score.fusion, (image_output, text_output), {}, layer, fits, device, cut=False) as fused:
        scores = score.score(fused.output)
        texts = list(passed.recorded.values())
        found = fused.gradients(scores, *ends, *texts)
        shares = torch.stack([_size(end, own) for end, own in zip(ends, found[:2], strict=True)], 1)
        total = shares.sum(1, keepdim=True)
        inside = list(zip(fused.recorded.items(), found[2 + len(texts) :], strict=True))
        usable = [
            (name, own, gradient)
            for (name, own), gradient in inside
            if gradient is not None and (layer is not None or not fused.is_output(name))
        ]
        name, own, gradient = usable[-1] if usable else ("image_embeddings", ends[0], found[0])
        if gradient is None:
            raise CaptureError(f"the score does not depend on {name!r} of the fusion module; use another fusion_layer")
        product = at_least_float32(gradient) * at_least_float32(own.detach())
        norms = product.abs() if product.ndim == 2 else torch.linalg.vector_norm(product, dim=-1)
    return (
        (name, norms.float(), (shares / total.where(total > 0, 1)).float()),
        found[2 : 2 + len(texts)],
        scores,
    )


def _size(end: Tensor, gradient: Tensor | None) -> Float[Tensor, " n"]:
    """Return the norm of gradient times embedding, for each sample."""
    if gradient is None:
        return end.new_zeros(len(end), dtype=torch.float32)
    product = at_least_float32(gradient) * at_least_float32(end.detach())
    size: Tensor = torch.linalg.vector_norm(product.flatten(1), dim=1).float()
    return size


def _has_rows(n: int, tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and len(tensor) == n and tensor.shape[-1] > 1
