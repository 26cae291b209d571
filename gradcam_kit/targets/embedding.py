"""A target for embedding models: the similarity of the embedding to a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils._pytree import tree_leaves

from gradcam_kit.errors import ShapeError, TargetError
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.targets.outputs import find_logits
from gradcam_kit.targets.values import changed, read_numbers, show

_NAMES = ("image_embeds", "image_features", "pooler_output")


@dataclass(frozen=True, eq=False)
class EmbeddingSimilarity:
    r"""The cosine of the angle between an image's embedding and a reference, $\frac{e \cdot r}{|e| |r|}$.

    The reference may come from another image or, for models of images and texts, from a text. The embedding is the
    output tensor `(n, d)`. In a mapping or a Hugging Face output, it is "image_embeds", "image_features" or
    "pooler_output", or else the only floating-point tensor. In a tuple, it is the first floating-point tensor `(n, d)`.

    Args:
        reference: one embedding for all samples `(d,)`, or one per sample `(n, d)`; it need not be normalized.

    Raises:
        ShapeError: the embeddings and the reference differ in size, or there is not one reference per sample.
        TargetError: a reference has only zeros, or the output has no embedding.
    """

    reference: Any

    def __post_init__(self) -> None:
        reference = read_numbers("reference", self.reference)
        if reference.ndim not in (1, 2):
            raise ShapeError(f"reference has shape {tuple(reference.shape)}; expected (d,) or (n, d)")
        if not reference.any(-1).all():
            raise TargetError(
                "reference has an embedding of zeros, which has no direction; expected a nonzero embedding"
            )
        object.__setattr__(self, "reference", reference)

    __repr__ = show

    def __call__(self, output: Any) -> Float[Tensor, " n"]:
        """Return cosines in [-1, 1]."""
        embeddings = read_embeddings(output, self.reference.shape[-1])
        if self.reference.ndim == 2 and len(self.reference) != len(embeddings):
            raise ShapeError(
                f"{len(self.reference)} references for {len(embeddings)} images; give one per image, or (d,) for all"
            )
        embeddings = at_least_float32(embeddings)
        reference = move(self.reference, embeddings.device, embeddings.dtype)
        return cosine_similarity(scaled(embeddings), scaled(reference), dim=-1)

    def select(self, index: Int[Tensor, " m"]) -> EmbeddingSimilarity:
        """Return the target for rows that belong to samples `index`."""
        if self.reference.ndim == 1:
            return self
        return changed(self, reference=move(self.reference, index.device)[index])


def scaled(embeddings: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Scale each embedding so that its largest absolute entry is 1, and its norm neither underflows nor overflows."""
    largest = embeddings.detach().abs().amax(-1, keepdim=True)
    return embeddings / largest.where(largest > 0, 1)


def read_embeddings(output: Any, size: int) -> Float[Tensor, "n d"]:
    """Find the embeddings of the images, with `size` entries each, in a model's output; see `EmbeddingSimilarity`.

    Raises:
        ShapeError: the embeddings have another size.
    """
    named = [output[name] for name in _NAMES if name in output] if isinstance(output, Mapping) else []
    leaves = tree_leaves(output) if isinstance(output, tuple | list) else named
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    fitting = [tensor for tensor in tensors if tensor.ndim == 2 and tensor.shape[1] == size]
    found = fitting[0] if fitting else tensors[0] if tensors else find_logits(output)
    if found.ndim != 2 or found.shape[1] != size:
        raise ShapeError(
            f"the model's embeddings have shape {tuple(found.shape)} and the reference has {size} numbers; "
            f"expected (n, {size})"
        )
    return found
