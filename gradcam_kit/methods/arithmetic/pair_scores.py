"""Scores of image-text pairs, from the outputs of the two towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture import ClassLogit, map_output, resolve_target
from gradcam_kit.errors import ShapeError, TargetError, kind_of
from gradcam_kit.functional import at_least_float32
from gradcam_kit.targets.embedding import EmbeddingSimilarity
from gradcam_kit.targets.outputs import predicted_classes

_NAMES = ("image_embeds", "text_embeds", "image_features", "text_features", "pooler_output")


def floating_in(output: Any) -> Tensor:
    """Return the first floating-point tensor in a tower's output."""
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves:
        raise TargetError(
            f"a tower returned {kind_of(output)} without floating-point values; expected embeddings (n, d)"
        )
    return leaves[0]


def embeddings_in(output: Any) -> Float[Tensor, "n d"]:
    """Return the embeddings in a tower's output."""
    named = [output[name] for name in _NAMES if name in output] if isinstance(output, Mapping) else []
    leaves = named or tree_leaves(output)
    found = [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point() and one.ndim == 2]
    if not found:
        shapes = ", ".join(str(tuple(one.shape)) for one in leaves if isinstance(one, Tensor)) or kind_of(output)
        raise TargetError(f"a tower returned {shapes}; expected embeddings (n, d), or pass fusion= for both outputs")
    return found[0]


@dataclass(frozen=True, eq=False)
class PairCosine:
    """The cosine similarity of each image's embedding and the embedding of its text."""

    texts: Any

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Return cosine similarities in [-1, 1] for the output of the image tower."""
        image, text = embeddings_in(output), embeddings_in(self.texts)
        if image.shape[1] != text.shape[1]:
            raise ShapeError(
                f"the image tower returns embeddings of {image.shape[1]} numbers and the text tower of "
                f"{text.shape[1]}; a cosine needs equal sizes: pass the towers with their projections, or fusion="
            )
        if text.requires_grad:
            return torch.cosine_similarity(at_least_float32(image), at_least_float32(text), dim=1)
        return EmbeddingSimilarity(text)(image)

    def detached(self) -> PairCosine:
        """Return the same scores, with the text detached from the autograd graph."""
        return PairCosine(embeddings_in(self.texts).detach())

    def select(self, index: Int[Tensor, " m"]) -> PairCosine:
        """Return the scores with the texts of the pairs `index`."""
        return PairCosine(embeddings_in(self.texts)[index])


@dataclass(frozen=True, eq=False)
class FusedScore:
    """The scores that the fusion module gives each image and its text."""

    fusion: nn.Module
    texts: Any
    targets: Any

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Return the scores of the fusion module for the output of the image tower."""
        return self.score(self.fusion(output, self.texts))

    def score(self, fused: Any) -> Float[Tensor, " n"]:
        """Return the scores in the output of the fusion module."""
        target = resolve_target(self.targets, ClassLogit, lambda: None)
        if target is None:
            target = ClassLogit(predicted_classes(fused))
        scores: Tensor = target(fused)
        return scores

    def detached(self) -> FusedScore:
        """Return the same scores, with the text detached from the autograd graph."""
        return FusedScore(self.fusion, map_output(lambda leaf: leaf.detach(), self.texts), self.targets)

    def select(self, index: Int[Tensor, " m"]) -> FusedScore:
        """Return the scores with the texts of the pairs `index`."""
        texts = map_output(lambda leaf: leaf[index] if leaf.ndim else leaf, self.texts)
        return FusedScore(self.fusion, texts, self.targets)
