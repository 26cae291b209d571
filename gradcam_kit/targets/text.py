"""A target for models of images and texts: how well a text fits an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.errors import InputError, TargetError, kind_of
from gradcam_kit.functional import at_least_float32, move
from gradcam_kit.targets.embedding import read_embeddings, scaled
from gradcam_kit.targets.values import changed, kinds_in


@dataclass(frozen=True, eq=False)
class TextTarget:
    r"""The cosine of the angle between an image and a text in a model that embeds both: $\cos(e, t)$.

    The target suits CLIP, SigLIP and similar models of open_clip (`encode_image`, `encode_text`) and transformers
    (`get_image_features`, `get_text_features`). The texts are encoded once per call; after that only the images run
    through the model, once for all texts. A list of m texts gives m maps for each image, `(n, m, *t)`; a single text
    gives `(n, *t)`.

    Args:
        texts: one text, or several.
        against: texts to compare with, whose mean cosine is subtracted, to explain why the image fits this text rather
            than the others. Without it, a map also shows evidence that is common to all texts.
        tokenizer: the model's tokenizer: `open_clip.get_tokenizer(NAME)`, or a tokenizer of transformers. None = the
            attribute `tokenizer` of the model, or the tokenizer stored with the weights of a model of transformers.
        encoded: the embeddings of `texts`, followed by those of `against`; filled in by the methods.

    Raises:
        InputError: `texts` or `against` is not a text or a list of texts, or a text is empty.
        TargetError: the model does not have two towers, the tokenizer is missing, or a text is too long.

    Example:
        >>> from gradcam_kit.targets import TextTarget
        >>> TextTarget(["a cat", "a dog"], against="a photo")
        TextTarget(texts=['a cat', 'a dog'], against='a photo')
    """

    texts: Any
    against: Any = field(default=None, kw_only=True)
    tokenizer: Any = field(default=None, kw_only=True, repr=False)
    encoded: Float[Tensor, "m d"] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        _check("texts", self.texts)
        if self.against is not None:
            _check("against", self.against)

    def __repr__(self) -> str:
        against = "" if self.against is None else f", against={self.against!r}"
        return f"TextTarget(texts={self.texts!r}{against})"

    @property
    def all_texts(self) -> list[str]:
        """The texts, followed by the texts to compare with."""
        return [*_listed(self.texts), *_listed(self.against)]

    @property
    def classes(self) -> Int[Tensor, "1 m"] | None:
        """Indices of several texts, which determine the number of scores per image, or None for one text."""
        return None if isinstance(self.texts, str) else torch.arange(len(self.texts))[None]

    def __call__(self, output: Any) -> Float[Tensor, "n *m"]:
        """Return cosines in [-1, 1], or differences of cosines, `(n,)` for a single text, else `(n, m)`."""
        if self.encoded is None:
            raise TargetError(
                "the texts are not encoded; pass the target to a method on a model of images and texts, or encode them "
                "and pass EmbeddingSimilarity(embedding)"
            )
        embeddings = at_least_float32(read_embeddings(output, self.encoded.shape[1]))
        directions = torch.nn.functional.normalize(scaled(embeddings), dim=1)
        cosines = directions @ move(self.encoded, embeddings.device, embeddings.dtype).mT
        count = len(_listed(self.texts))
        scores = cosines[:, :count]
        if self.against is not None:
            scores = scores - cosines[:, count:].mean(1, keepdim=True)
        return scores[:, 0] if isinstance(self.texts, str) else scores

    def select(self, index: Int[Tensor, " m"]) -> TextTarget:
        """Return the target itself for any rows, because the texts are the same for all images."""
        return self

    def with_embeddings(self, embeddings: Float[Tensor, "m d"]) -> TextTarget:
        """Return the target with the embeddings of `all_texts`.

        Raises:
            TargetError: the number of embeddings differs from the number of texts.
        """
        embeddings = at_least_float32(embeddings.detach())
        if embeddings.ndim != 2 or len(embeddings) != len(self.all_texts):
            raise TargetError(
                f"the model encodes {len(self.all_texts)} texts as {tuple(embeddings.shape)}; expected one row for each"
            )
        return changed(self, encoded=torch.nn.functional.normalize(scaled(embeddings), dim=1))


def _listed(texts: Any) -> list[Any]:
    return [] if texts is None else [texts] if isinstance(texts, str) else list(texts)


def _check(name: str, texts: Any) -> None:
    given = _listed(texts) if isinstance(texts, str | list | tuple) else None
    if given is None or not all(isinstance(text, str) for text in given):
        kind = kinds_in(texts) if isinstance(texts, list | tuple) else kind_of(texts)
        raise InputError(f"{name} is {kind}; expected a text, or a list of texts")
    if not given or not all(text.strip() for text in given):
        raise InputError(f"{name} is {texts!r}; expected at least one text, and no empty text")
