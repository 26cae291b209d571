"""Ablation-CAM: Desai & Ramaswamy, WACV 2020, https://doi.org/10.1109/WACV45572.2020.9093360."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.functional import spatial_mean
from gradcam_kit.methods.arithmetic.channels import check_channels, ranked_channels, where_true
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.types import Evidence, LayerCapture


class AblationCAM(BaseCAM, name="ablation-cam"):
    r"""Weight channels by what the score loses without them: $w_k = (y - y_{-k}) / |y|$.

    The method measures the drop of the score instead of differentiating, so saturated scores do not mislead it. It runs
    the part of the model after the layer once per channel, or not at all if only mean pooling and a linear head follow.
    $y_{-k}$ is the score with channel k set to 0. The paper divides by y, which would flip the sign of every weight
    where y < 0, so this implementation divides by |y|. Where y = 0, the weight is the difference itself.

    Args:
        channels: ablate only this many channels of each image (an int), or this share of them (a float in (0, 1]): the
            channels with the largest standard deviation over space. The other channels get weight 0. None = all
            channels.

    Example:
        >>> from gradcam_kit import AblationCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> AblationCAM(load_demo_model(), "layer3", channels=8)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.REPLAY | Evidence.HEAD
    cost = "F + k S"

    channels: int | float | None = None

    def check_options(self) -> None:
        """Raise OptionError for an invalid number or share of channels."""
        check_channels(self.channels)

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the maps of all targets, which share the ablated passes."""
        assert layer.scores is not None
        activations = layer.activations
        alive = (activations != 0).flatten(2).any(2)  # a channel of zeros changes nothing when it is set to 0
        if self.channels is not None:
            chosen = ranked_channels(layer, self.channels, "std")
            alive = alive & torch.zeros_like(alive).scatter(1, chosen, True)
        drops = self._drops(layer, alive)
        scale = layer.scores.abs()
        weights = drops / scale.where(scale > 0, 1)[:, None]
        letters = "nk...,nkm->nm..." if weights.ndim == 3 else "nk...,nk->n..."
        return torch.einsum(letters, activations, weights)

    def _drops(self, layer: LayerCapture, alive: Bool[Tensor, "n k"]) -> Float[Tensor, "n k *targets"]:
        """Return the drop of the score without channel k, for each k. With a linear head, no pass is needed."""
        activations = layer.activations
        assert layer.scores is not None
        if layer.head is not None and layer.head.is_linear:
            pooled = (spatial_mean(activations).flatten(1) * alive)[(..., *(None for _ in layer.scores.shape[1:]))]
            return pooled * layer.head.target_weights.movedim(-1, 1)
        (rows,) = where_true(alive)
        drops = activations.new_zeros((*activations.shape[:2], *layer.scores.shape[1:]))
        if len(rows):
            ablated = torch.cat([self._ablate(layer, chunk) for chunk in rows.split(self.batch_size)])
            drops[rows[:, 0], rows[:, 1]] = layer.scores[rows[:, 0]] - ablated
        return drops

    def _ablate(self, layer: LayerCapture, rows: Int[Tensor, "m 2"]) -> Float[Tensor, "m *targets"]:
        """Score the activations of sample `rows[:, 0]` with channel `rows[:, 1]` set to 0."""
        sample_index, channel = rows.unbind(1)
        changed = layer.activations[sample_index]
        position = channel.reshape(-1, *(1 for _ in changed.shape[1:])).expand(-1, 1, *changed.shape[2:])
        # assigning a Python number by index would copy it from the host and synchronize
        changed.scatter_(1, position, 0)
        return layer.replay(changed, sample_index)
