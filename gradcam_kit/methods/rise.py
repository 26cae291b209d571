"""RISE: Petsiuk et al., BMVC 2018, https://arxiv.org/abs/1806.07421."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.capture import rows_at_once
from gradcam_kit.draws import checksums
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import at_least_float32
from gradcam_kit.methods.arithmetic.random_masks import random_masks
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.options import finite_number, positive_int, whole
from gradcam_kit.targets.classes import ClassProbability, ClassTarget
from gradcam_kit.types import Evidence, LayerCapture, LayerChoice, Rescore


class RISE(BaseCAM, name="rise"):
    r"""Average random masks, weighted by the score of the masked image: $\frac{1}{N p} \sum_i y(x \odot M_i) M_i$.

    The method uses only inputs and outputs, so it works for every model. A map costs one forward pass per mask, and its
    noise decreases with the square root of the number of masks. The masks multiply the model's normalized input, so
    removed regions have the mean color. The masks of an image depend only on its values and the seed; they are made in
    chunks and never stored. `target_layers` is not used.

    Args:
        masks: number of masks N; the paper uses 4000 for VGG-16 and 8000 for ResNet-50.
        cells: number of mask cells along each axis.
        visible: p, the probability that a cell remains visible, in (0, 1).
        seed: seed of the masks.

    Example:
        >>> from gradcam_kit import RISE
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> RISE(load_demo_model(), masks=20)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.RESCORE
    layer_choice = LayerChoice.INPUT
    target_type: type[ClassTarget] = ClassProbability
    cost = "F + masks R"

    masks: int = 4000
    cells: int = 7
    visible: float = 0.5
    seed: int = 0

    def check_options(self) -> None:
        """Raise OptionError for fewer than one mask or cell, or a probability outside (0, 1)."""
        self.masks, self.cells = positive_int("masks", self.masks), positive_int("cells", self.cells)
        self.seed = whole("seed", self.seed)
        kind = "a probability between 0 and 1"
        self.visible = finite_number("visible", self.visible, kind)
        if not 0 < self.visible < 1:
            raise OptionError(f"visible is {self.visible!r}; expected {kind}")

    def rows(self, layer: LayerCapture) -> Rescore:
        """Return the function that scores masked images."""
        return layer.rescore

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *mt"]:
        """Return the maps of all targets from one set of masked images."""
        images, rescore = layer.images, self.rows(layer)
        n, size = len(images), tuple(images.shape[2:])
        identities, samples = checksums(images), torch.arange(n, device=images.device)
        dtype = at_least_float32(images[:0]).dtype
        together = max(1, rows_at_once(self.batch_size, images[:1].nbytes, images.device) // n)
        total: Tensor | None = None
        for numbers in torch.arange(self.masks, device=images.device).split(together):
            index = samples.repeat(len(numbers))
            which = numbers.repeat_interleave(n)
            masks = random_masks(which, identities[index], size, self.cells, self.visible, self.seed, dtype)
            scores = rescore(images[index].mul_(masks[:, None].to(images.dtype)), index)
            per_mask = (len(numbers), n)
            sums = torch.einsum(
                "ins,int->nst", scores.to(dtype).reshape(*per_mask, -1), masks.reshape(*per_mask, -1)
            ).reshape(*per_mask[1:], *scores.shape[1:], *size)
            total = sums if total is None else total.add_(sums)
        assert total is not None
        return total / (self.masks * self.visible)
