"""Targets that compare the logits of several classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.capture.targets import Classes, ClassLogit, ClassTarget, read_classes
from gradcam_kit.errors import OptionError, TargetError

Weighting = Literal["softmax", "mean"]


@dataclass(frozen=True, eq=False)
class LogitDifference(ClassTarget):
    """Why this class and not that one: z_c - z_r, after DiffGradCAM (Piland et al. 2025, arXiv 2506.08514).

    Args:
        classes: the class to explain.
        against: the class(es) that it is compared with, shaped like `classes`; None = the mean of all others.
    """

    against: Classes | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against is not None:
            object.__setattr__(self, "against", read_classes(self.against))

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """z_c - z_r, in logit units."""
        chosen = logits.gather(1, classes)
        if self.against is not None:
            references = ClassLogit(self.against).indices(logits).reshape(len(logits), -1)
            return chosen - logits.gather(1, references.expand_as(classes))
        if logits.shape[1] == 1:
            raise TargetError("the model has one output, so there is no other class to compare with; use ClassLogit")
        return chosen - (logits.sum(1, keepdim=True) - chosen) / (logits.shape[1] - 1)

    def select(self, index: Int[Tensor, " m"]) -> LogitDifference:
        """The target of the rows that belong to samples `index`."""
        selected = super().select(index)
        if isinstance(self.against, Tensor):
            selected = replace(selected, against=self.against.to(index.device)[index])
        return selected


@dataclass(frozen=True, eq=False)
class FinerTarget(ClassTarget):
    r"""A class against the classes that are most like it: Finer-CAM (Zhang et al., CVPR 2025, arXiv 2501.11309).

    The references d are the classes whose logits are nearest to z_c, without c itself (of tied ones those with the
    lower index). The score is $\frac{\sum_d p_d (z_c - \alpha z_d)}{\sum_d p_d}$ with softmax probabilities p, whose
    gradient counts (released code), or $z_c - \gamma \frac{1}{|d|} \sum_d z_d$.

    Args:
        classes: the class to explain.
        references: how many classes to compare with; fewer where the model has fewer. A model with one output has
            none (its other class has the logit 0), so the score is its logit.
        weighting: "softmax" or "mean".
        alpha: strength of the comparison for "softmax"; 0 = the logit.
        gamma: strength of the comparison for "mean".

    Raises:
        OptionError: a weighting that does not exist, or fewer than one reference.
    """

    references: int = 3
    weighting: Weighting = "softmax"
    alpha: float = 1.0
    gamma: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in get_args(Weighting):
            raise OptionError(f"weighting is {self.weighting!r}; expected 'softmax' or 'mean'")
        if isinstance(self.references, bool) or not isinstance(self.references, int) or self.references < 1:
            raise OptionError(f"references is {self.references!r}; expected a positive int, as 3 in the paper")

    def score(self, logits: Float[Tensor, "n classes"], classes: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """The comparison with the nearest classes, in logit units."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chosen = logits.gather(1, classes)
        if logits.shape[1] == 1:
            return chosen
        distances = (logits[:, None] - chosen[..., None]).detach().abs().scatter(2, classes[..., None], torch.inf)
        count = min(self.references, logits.shape[1] - 1)
        nearest = distances.argsort(dim=2, stable=True)[..., :count]
        others = logits[:, None].expand_as(distances).gather(2, nearest)
        if self.weighting == "mean":
            return chosen - self.gamma * others.mean(2)
        # p_d / sum_d p_d is the softmax over the references alone.
        return chosen - self.alpha * (others.softmax(2) * others).sum(2)
