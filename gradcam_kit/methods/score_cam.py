"""Score-CAM: Wang et al., CVPR Workshops 2020, https://arxiv.org/abs/1910.01279."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import Unpack

from gradcam_kit.capture import TargetLayers, in_half_precision, rows_at_once
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import normalize, upsample
from gradcam_kit.methods.arithmetic.channels import Ranking, check_channels, places, ranked_channels, take_channels
from gradcam_kit.methods.base import BaseCAM, Options
from gradcam_kit.options import one_of
from gradcam_kit.types import Evidence, LayerCapture, Rows

Weighting = Literal["softmax", "probability", "relu"]
_HALF = (torch.bfloat16, torch.float16)
_BASELINE = -1  # stands for a channel whose mask is zero everywhere


class ScoreOptions(Options, total=False):
    """The options of Score-CAM and those of all methods, as types of the constructors that hand them on."""

    weighting: Weighting
    channels: int | float | None
    ranking: Ranking
    dtype: torch.dtype | None


def channel_scores(
    layer: LayerCapture,
    activations: Float[Tensor, "n k *s"],
    batch_size: int,
    *,
    rescore: Rows,
    baseline: bool = False,
    changes: Sequence[Callable[[Tensor], Tensor] | None] = (None,),
) -> tuple[Float[Tensor, "n k *m"], Bool[Tensor, "n k"], Float[Tensor, "n *m"]]:
    """Score the images masked by each channel: s_k = y(x * M_k), M_k = the upsampled channel, min-max normalized.

    Masks are built, applied and scored as many at a time as go through the model in one pass. A constant channel has
    mask 0, so all constant channels of an image share one score, which is computed once.

    Args:
        layer: gives the images.
        activations: the channels to score.
        batch_size: the most rows in one forward pass.
        rescore: scores the masked images.
        baseline: score the zero input of every image, also of those without a constant channel.
        changes: each is applied to the masks `(m, *t)` of all chunks; None = they stay.

    Returns:
        Scores, which channels are constant, and the score of the zero input (zero where it was not needed); the means
        over the changes.
    """
    flat = activations.flatten(2)
    constant = flat.amax(2) == flat.amin(2)
    live, whose = places(~constant, torch.ones_like(constant[:, 0]) if baseline else constant.any(1))
    rows = torch.cat([live, torch.cat([whose, torch.full_like(whose, _BASELINE)], 1)])
    chunks = rows.split(rows_at_once(batch_size, layer.images[:1].nbytes, layer.images.device))
    passes = [[_score_rows(layer, activations, chunk, rescore, change) for chunk in chunks] for change in changes]
    scores = torch.stack([torch.cat(scores) for scores in passes]).mean(0)
    targets = scores.shape[1:]
    zero_input = scores.new_zeros((len(flat), *targets)).index_copy(0, rows[len(live) :, 0], scores[len(live) :])
    by_channel = zero_input[:, None].expand(*constant.shape, *targets).clone()
    by_channel[live[:, 0], live[:, 1]] = scores[: len(live)]
    return by_channel, constant, zero_input


def _score_rows(
    layer: LayerCapture,
    activations: Tensor,
    rows: Int[Tensor, "m 2"],
    rescore: Rows,
    change: Callable[[Tensor], Tensor] | None,
) -> Float[Tensor, "m *targets"]:
    whose, channel = rows.unbind(1)
    size = layer.images.shape[2:]
    masks = normalize(upsample(activations[whose, channel.clamp(min=0)], size))
    masks = masks * (channel != _BASELINE).view(-1, *(1 for _ in size))
    masks = masks if change is None else change(masks)
    images = layer.images[whose].mul_(masks[:, None].to(layer.images.dtype))
    return rescore(images, whose).to(activations.dtype)


class ScoreCAM(BaseCAM, name="score-cam"):
    """Channels weighted by the score of the image that they mask; no gradients.

    The masks multiply the model's normalized input, so what they remove becomes the mean color, not black.

    Args:
        weighting: "softmax" (paper): softmax of the scores over the channels. The paper subtracts a baseline score
            first, which cancels in the softmax and is not computed. "probability" (released code): the class's softmax
            probability, constant channels skipped. "relu": ReLU(score - score of the zero input).
        channels: keep only so many channels of each image (an int), or this share of them (a float in (0, 1]).
        ranking: which channels are kept: those with the largest standard deviation over space ("std"), with the
            largest mean gradient ("gradient", gScoreCAM: Chen et al., ACCV 2022; one backward pass), or whose mask on
            the layer keeps most of the score to first order ("first-order", no paper; one backward pass).
        dtype: torch.bfloat16 or torch.float16 runs the masked passes under autocast in half precision, for speed; None
            (default) in that of the model. The unchanged image, what is explained and all arithmetic keep theirs.
    """

    needs: Evidence = Evidence.RESCORE
    cost = "F + k R"

    def __init__(
        self,
        model: nn.Module,
        target_layers: TargetLayers | None = None,
        *,
        weighting: Weighting = "softmax",
        channels: int | float | None = None,
        ranking: Ranking = "std",
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, target_layers, **options)
        if dtype is not None and dtype not in _HALF:
            raise OptionError(f"dtype is {dtype!r}; expected None, {' or '.join(map(str, _HALF))}")
        self.dtype = dtype
        self.weighting: Weighting = one_of("weighting", weighting, get_args(Weighting))
        self.ranking: Ranking = one_of("ranking", ranking, get_args(Ranking))
        self.channels = check_channels(channels)
        if channels is not None and ranking != "std":
            self.needs = Evidence.RESCORE | Evidence.GRADIENTS

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """One set of masked passes for all targets; a ranking by gradients picks other channels for each."""
        if Evidence.GRADIENTS in self.needs:
            return super().saliencies(layer)
        return self.saliency(layer)

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """sum_k w_k A_k over the channels that are kept."""
        activations = self.keep(layer)
        scores, constant, zero_input = self.score(layer, activations)
        if self.weighting == "softmax":
            weights = scores.softmax(1)
        elif self.weighting == "probability":
            weights = scores.where(~constant.view(*constant.shape, *(1 for _ in scores.shape[2:])), 0)
        else:
            weights = (scores - zero_input[:, None]).clamp(min=0)
        if weights.ndim == 2:
            return torch.einsum("nk...,nk->n...", activations, weights)
        return torch.einsum("nk...,nkm->nm...", activations, weights)

    def score(self, layer: LayerCapture, activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the channels, which are constant, and the score of the zero input; the mean over `mask_changes`."""
        baseline, rescore = self.weighting == "relu", self.rows(layer)
        changes = self.mask_changes(layer)
        return channel_scores(layer, activations, self.batch_size, rescore=rescore, baseline=baseline, changes=changes)

    def rows(self, layer: LayerCapture) -> Rows:
        """What scores masked images."""
        rescore = layer.rescore_probability if self.weighting == "probability" else layer.rescore
        return rescore if self.dtype is None else in_half_precision(rescore, self.dtype)

    def mask_changes(self, layer: LayerCapture) -> Sequence[Callable[[Tensor], Tensor] | None]:
        """What is done to the masks before they are applied, once for each pass over the channels."""
        return [None]

    def keep(self, layer: LayerCapture) -> Float[Tensor, "n r *s"]:
        """The channels that are scored."""
        if self.channels is None:
            return layer.activations
        return take_channels(layer.activations, ranked_channels(layer, self.channels, self.ranking))
