"""Deep feature factorization: Collins et al., ECCV 2018, https://arxiv.org/abs/1806.10206."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import Inputs, TargetLayers, heatmap_size, in_fastest_format, read_inputs
from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.functional import move, upsample
from gradcam_kit.methods.arithmetic.distinct_rows import distinct_rows, unit_rows
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.engine.engine import capture_for, with_images_of
from gradcam_kit.options import positive_int
from gradcam_kit.types import Evidence, Images, Reshape


@dataclass(frozen=True, eq=False)
class Factorization:
    """Result of a factorization: concepts that the images of a batch share, and their maps.

    Attributes:
        heatmaps: `(n, components, *t)` float32 in [0, 1]: the maps at the size of the images, divided by the largest
            value of each concept in the batch, so that a concept gives a dark map for an image that lacks it.
        maps: strength of each concept at each position of the layer; nonnegative.
        concepts: a direction in channel space for each component; nonnegative.
        layer: name of the layer.
    """

    heatmaps: Float[Tensor, "n components *t"]
    maps: Float[Tensor, "n components *s"]
    concepts: Float[Tensor, "components k"]
    layer: str


def nonnegative_rows(activations: Float[Tensor, "n k *s"]) -> Float[Tensor, "rows k"]:
    """Return one row for each sample and position. Channels with negative values are shifted to a minimum of 0."""
    rows = activations.movedim(1, -1).flatten(0, -2)
    return rows - rows.amin(0).clamp(max=0)


def factorize(
    rows: Float[Tensor, "rows k"], components: int, seed: int = 0, iterations: int = 200
) -> tuple[Float[Tensor, "rows components"], Float[Tensor, "components k"]]:
    r"""Factorize $V \approx H W$ into nonnegative factors with the multiplicative updates of Lee & Seung.

    No update increases $\|V - H W\|^2$; a factor 0 / 0 is taken as 0. The concepts are initialized with the rows of V
    that differ most from each other. A little noise is added to them, because the updates cannot change an entry of 0.
    The order of the rows does not influence the concepts.

    Args:
        rows: the matrix V, without negative entries.
        components: number of components.
        seed: seed of the random row with which the choice of rows starts, and of the noise.
        iterations: number of updates of both factors.

    Returns:
        The factors H and W.
    """
    # Normalize the scale, so that products of entries neither overflow nor underflow.
    largest = rows.amax()
    scale = largest.where(largest > 0, 1)
    rows = rows / scale
    generator = torch.Generator().manual_seed(seed)
    start, noise = torch.rand(1 + components, rows.shape[1], generator=generator).split([1, components])
    chosen = distinct_rows(unit_rows(rows)[None], components, start[0])[0]
    concepts = rows[chosen] + rows.mean() * move(noise, rows.device, rows.dtype)
    amounts = rows.new_ones(len(rows), components)
    for _ in range(iterations):
        amounts = amounts * _ratio(rows @ concepts.mT, amounts @ (concepts @ concepts.mT))
        concepts = concepts * _ratio(amounts.mT @ rows, (amounts.mT @ amounts) @ concepts)
    return amounts, scale * concepts


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return `above / below`, and 0 where `below` is 0."""
    return above / below.where(below > 0, torch.inf)


class _Activations(BaseCAM):
    """A placeholder method, for which the engine captures the activations to factorize."""

    needs = Evidence.NONE
    class_agnostic = True


class DeepFeatureFactorization:
    """Find a few concepts that all images of a batch share, and where they are, without classes or gradients.

    The concepts show what a layer distinguishes, such as parts, textures and background. There are several maps for
    each image, so this is not a CAM method. Because the images share the concepts, the maps of a batch differ from
    those of its images one by one.

    Args:
        model: any PyTorch model.
        target_layers: one layer, as for CAM methods; None = chosen automatically.
        components: number of concepts, at least 1.
        seed: seed of the initial concepts.
        iterations: number of iterations of the factorization, at least 1.
        reshape: as for CAM methods, see `BaseCAM`.
        image_input: as for CAM methods, see `BaseCAM`.

    Example:
        >>> from gradcam_kit import DeepFeatureFactorization
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> factorization = DeepFeatureFactorization(load_demo_model(), "layer4", components=3)
        >>> factorization(collate([draw(0), draw(1)]).images).shape
        torch.Size([2, 3, 128, 128])
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        components: int = 5,
        seed: int = 0,
        iterations: int = 200,
        reshape: Reshape | None = None,
        image_input: int | str | None = None,
    ) -> None:
        self._source = _Activations(model, target_layers, reshape=reshape, image_input=image_input)
        if len(self._source.target_layers or ()) > 1:
            raise OptionError(f"got {len(self._source.target_layers or ())} target layers; expected one, or None")
        positive_int("components", components)
        positive_int("iterations", iterations)
        self.components, self.seed, self.iterations = components, seed, iterations

    def __call__(self, images: Images, **forward_kwargs: Any) -> Float[Tensor, "n components *t"]:
        """Return the heatmaps of the concepts. The arguments are those of `explain`."""
        return self.explain(images, **forward_kwargs).heatmaps

    @torch.inference_mode(False)
    def explain(self, images: Images, **forward_kwargs: Any) -> Factorization:
        """Return heatmaps, maps and concepts.

        Args:
            images: `(n, c, *t)`, or a tuple or mapping of inputs for models with several; at least one sample.
            forward_kwargs: keyword arguments passed on to the model.
        """
        source = self._source
        inputs = read_inputs(images, forward_kwargs, source.model, image_input=source.image_input)
        if inputs.n == 0:
            raise ShapeError("the batch is empty, so there are no images to find concepts in; pass at least one image")
        return in_fastest_format(source.model, with_images_of(source, inputs, None), self._factorize)

    def _factorize(self, inputs: Inputs) -> Factorization:
        with capture_for([self._source], inputs, None) as (captured, ((layer,),)):
            activations = captured.layer(layer, Evidence.NONE, self._source.batch_size).activations
            amounts, concepts = factorize(nonnegative_rows(activations), self.components, self.seed, self.iterations)
            n, _, *positions = activations.shape
            maps = amounts.unflatten(0, (n, *positions)).movedim(-1, 1)
            highest = amounts.amax(0).view(-1, *(1 for _ in positions))
            shares = maps / highest.where(highest > 0, 1)
            size = heatmap_size(positions, inputs.images.shape[1:]) if self._source.reshape else inputs.size
            heatmaps = upsample(shares.flatten(0, 1), size).unflatten(0, (n, self.components))
        return Factorization(heatmaps.to(torch.float32), maps, concepts, layer)
