"""Score-CAM: Wang et al., CVPR Workshops 2020, https://arxiv.org/abs/1910.01279."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradcam_kit.capture import in_half_precision, rows_at_once
from gradcam_kit.errors import OptionError
from gradcam_kit.functional import normalize, upsample
from gradcam_kit.methods.arithmetic.channels import Ranking, check_channels, ranked_channels, take_channels, where_true
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.options import one_of
from gradcam_kit.types import Evidence, LayerCapture, Rescore

Weighting = Literal["softmax", "probability", "relu"]
_HALF = (torch.bfloat16, torch.float16)
_BASELINE = -1  # index of a placeholder channel, whose mask is zero everywhere


def channel_scores(
    layer: LayerCapture,
    activations: Float[Tensor, "n k *s"],
    batch_size: int,
    *,
    rescore: Rescore,
    baseline: bool = False,
    changes: Sequence[Callable[[Tensor], Tensor] | None] = (None,),
) -> tuple[Float[Tensor, "n k *m"], Bool[Tensor, "n k"], Float[Tensor, "n *m"]]:
    """Score the images masked by each channel: s_k = y(x * M_k), M_k = the upsampled channel, min-max normalized.

    Masks are built, applied and scored in chunks of one forward pass. A constant channel has mask 0, so all constant
    channels of an image share one score, which is computed once.

    Args:
        layer: the capture whose images are masked.
        activations: the channels to score.
        batch_size: maximum number of rows in one forward pass.
        rescore: function that scores the masked images.
        baseline: whether to score the zero input of every image, even if no channel is constant.
        changes: functions that change the masks `(m, *t)`, one for each pass over the channels; None = no change.

    Returns:
        The score of each channel, whether each channel is constant, and the score of the zero input (0 if it is not
        needed). The scores are means over the changes.
    """
    flat = activations.flatten(2)
    constant = flat.amax(2) == flat.amin(2)
    live, zeroed = where_true(~constant, torch.ones_like(constant[:, 0]) if baseline else constant.any(1))
    rows = torch.cat([live, torch.cat([zeroed, torch.full_like(zeroed, _BASELINE)], 1)])
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
    rescore: Rescore,
    change: Callable[[Tensor], Tensor] | None,
) -> Float[Tensor, "m *targets"]:
    """Score sample `rows[:, 0]` masked by its channel `rows[:, 1]`."""
    sample_index, channel = rows.unbind(1)
    size = layer.images.shape[2:]
    masks = normalize(upsample(activations[sample_index, channel.clamp(min=0)], size))
    masks = masks * (channel != _BASELINE).view(-1, *(1 for _ in size))
    masks = masks if change is None else change(masks)
    images = layer.images[sample_index].mul_(masks[:, None].to(layer.images.dtype))
    return rescore(images, sample_index).to(activations.dtype)


class ScoreCAM(BaseCAM, name="score-cam"):
    r"""Weight each channel by the score of the image that it masks, without gradients.

    The map is $\sum_k \mathrm{softmax}_k(y(x \odot H_k))\, A_k$, where $H_k$ is channel k at the size of the image and
    scaled to [0, 1]. Use this method for models whose gradients are noisy or vanish. Score-CAM is the most expensive of
    the common methods, with one forward pass per channel; `channels` and `dtype` make it several times faster. The
    masks multiply the model's normalized input, so removed regions have the mean color and are not black.

    Args:
        weighting: "softmax" (paper): softmax of the scores over the channels. The paper subtracts a baseline score
            first, which cancels in the softmax and is not computed. "probability" (released code): the probability of
            the class, which is the softmax unless the model shows another score kind (sigmoid or raw); constant
            channels are skipped. "relu": ReLU(score - score of the zero input).
        channels: keep only this many channels of each image (an int), or this share of them (a float in (0, 1]); None =
            all.
        ranking: which channels are kept. "std": those with the largest standard deviation over space. "gradient": those
            with the largest mean gradient (gScoreCAM: Chen et al., ACCV 2022). "first-order": those whose mask on the
            layer keeps most of the score to first order (no paper). The last two need one backward pass.
        dtype: torch.bfloat16 or torch.float16 runs the masked passes under autocast in half precision, for speed; None
            = the model's own precision. The unmasked image, the target and all arithmetic keep their precision.

    Example:
        >>> from gradcam_kit import ScoreCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> ScoreCAM(load_demo_model(), "layer4", channels=8)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    needs = Evidence.RESCORE
    cost = "F + k R"

    weighting: Weighting = "softmax"
    channels: int | float | None = None
    ranking: Ranking = "std"
    dtype: torch.dtype | None = None

    def check_options(self) -> None:
        """Raise an error for invalid options, and request gradients if channels are ranked by them."""
        if self.dtype is not None and self.dtype not in _HALF:
            raise OptionError(f"dtype is {self.dtype!r}; expected None, {' or '.join(map(str, _HALF))}")
        one_of("weighting", self.weighting, get_args(Weighting))
        one_of("ranking", self.ranking, get_args(Ranking))
        check_channels(self.channels)
        if self.channels is not None and self.ranking != "std":
            self.needs = Evidence.RESCORE | Evidence.GRADIENTS

    def saliencies(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return the maps of all targets, from one set of masked passes unless channels are ranked by gradients."""
        if Evidence.GRADIENTS in self.needs:
            return super().saliencies(layer)
        return self.saliency(layer)

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *ms"]:
        """Return sum_k w_k A_k over the selected channels."""
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
        """Return the scores of the channels, which of them are constant, and the score of the zero input."""
        baseline, rescore = self.weighting == "relu", self.rows(layer)
        changes = self.mask_changes(layer)
        return channel_scores(layer, activations, self.batch_size, rescore=rescore, baseline=baseline, changes=changes)

    def rows(self, layer: LayerCapture) -> Rescore:
        """Return the function that scores masked images."""
        rescore = layer.rescore_probability if self.weighting == "probability" else layer.rescore
        return rescore if self.dtype is None else in_half_precision(rescore, self.dtype)

    def mask_changes(self, layer: LayerCapture) -> Sequence[Callable[[Tensor], Tensor] | None]:
        """Return the functions that change the masks before they are applied, one for each pass over the channels."""
        return [None]

    def keep(self, layer: LayerCapture) -> Float[Tensor, "n r *s"]:
        """Return the channels that are scored."""
        if self.channels is None:
            return layer.activations
        return take_channels(layer.activations, ranked_channels(layer, self.channels, self.ranking))
