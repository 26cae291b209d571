"""Check that a model can overfit one small batch, as every working model can."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_kit.capture import check_model
from gradcam_kit.diagnostics.checks.batches import Pair, call, limited, loss_value, moved, read_pair, samples
from gradcam_kit.diagnostics.checks.preserving import copied, device_of, left_as_found
from gradcam_kit.diagnostics.checks.probing import first_constant_layer
from gradcam_kit.diagnostics.checks.steps import LONGEST, Steps, train, without_dropout
from gradcam_kit.diagnostics.checks.tasks import Loss, outputs_of, read_task
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.errors import raise_interruption

_MOST = 16  # maximum number of samples in the batch
_STEPS = 200
_TELLING = 100  # number of steps without progress that suffice for a verdict when time runs out
_RATES = (1e-3, 1e-2, 3e-2)
_SHARE = 0.05
_HOPEFUL = 0.9  # a run that timed out with a loss below this share of its first loss was making progress


def can_overfit(model: Any, batch: Any, loss: Loss, *, seconds: float = LONGEST) -> list[Finding]:
    """Check that a copy of a model can overfit up to 16 samples.

    The model is trained with Adam and without dropout, for up to 200 steps at each of the learning rates 1e-3, 1e-2
    and 3e-2 in turn. It passes once the loss falls below 5 % of its first value, or of the chance-level loss if that
    is larger (the logarithm of the number of classes; for regression, the loss of predicting the mean). A model with
    dropout that passes is then trained once more, with dropout.

    Args:
        model: any module; only a copy is trained, with a fixed seed.
        batch: inputs and labels.
        loss: `loss(output, labels)`, which returns one number.
        seconds: time limit for all training runs together.

    Returns:
        An empty list if the model overfits the batch, else one finding. Its kind is overfit-batch, with level "bad" if
        enough steps were taken, "warn" or "note" if time ran out first, and "note" if only dropout prevents it. If the
        cause is known, its kind is no-gradient, frozen or nonfinite instead.

    Raises:
        InputError: a loss that is not one number, a batch that is not a pair, or a model that cannot be copied.
        ShapeError: different numbers of inputs and labels.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> can_overfit(model, (torch.eye(4), torch.tensor([0, 1, 2, 0])), nn.CrossEntropyLoss())
        []
    """
    model = check_model(model)
    inputs, labels = limited(read_pair(batch), _MOST)
    device = device_of(model)
    pair = moved(inputs, device), moved(labels, device)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return [_frozen(samples(inputs))]
    trials, left = [], seconds
    with left_as_found(model, inputs, seed=0):
        floor = _floor(model, pair, loss)
        for rate in _RATES:
            trial = _Trial(model, pair, loss, rate, floor)
            left -= trial.run(left, dropout=False)
            trials.append(trial)
            if trial.passed or trial.steps.detached or left <= 0:
                break
        has_dropout = without_dropout(copied(model))
        if trials[-1].passed and has_dropout and left > 0:
            again = _Trial(model, pair, loss, trials[-1].rate, floor)
            again.run(left, dropout=True)
            return [] if again.passed or again.steps.timed_out else [again.finding(trials, by_dropout=True)]
    best = min(trials, key=lambda trial: trial.best)
    return [] if best.passed else [best.finding(trials)]


class _Trial:
    """A training run on the batch at one learning rate."""

    def __init__(self, model: nn.Module, pair: Pair, loss: Loss, rate: float, floor: float) -> None:
        self.model, self.pair, self.loss, self.rate, self.floor = model, pair, loss, rate, floor
        self.n = samples(pair[0])
        self.steps = Steps()

    @property
    def limit(self) -> float:
        """The loss below which the batch counts as learned."""
        return max(_SHARE * self.steps.losses[0], _SHARE * self.floor)

    @property
    def best(self) -> float:
        """The lowest finite loss; infinity if there is none."""
        return min((loss for loss in self.steps.losses if math.isfinite(loss)), default=math.inf)

    @property
    def passed(self) -> bool:
        """Whether the batch was learned."""
        return self.best < self.limit

    def run(self, seconds: float, dropout: bool) -> float:
        """Train a copy of the model, and return the elapsed seconds."""
        start = time.monotonic()
        model = copied(self.model)
        if not dropout:
            without_dropout(model)
        if self.n == 1:  # batch normalization can reject a single sample in train mode
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=self.rate)
        first: list[float] = []

        def is_learned(loss: float) -> bool:
            first.append(loss)
            return loss < _SHARE * max(first[0], self.floor)

        self.steps = train(model, [self.pair], self.loss, optimizer, _STEPS + 1, until=is_learned, seconds=seconds)
        return time.monotonic() - start

    def finding(self, trials: Sequence[_Trial], by_dropout: bool = False) -> Finding:
        """Return the finding that explains why the batch was not learned."""
        first, best = self.steps.losses[0], self.best
        if self.steps.detached:
            return _no_graph(self.n)
        if not math.isfinite(first):
            text = f"The loss is {first} before any step"
            return Finding(
                "bad", "nonfinite", "", text, first, None, self.n, "Call find_nonfinite(model)", "definition"
            )
        taken = sum(max(0, len(trial.steps.losses) - 1) for trial in trials)
        if by_dropout:
            return Finding(
                "note",
                "overfit-batch",
                "",
                "The model overfits one batch without dropout, but not with dropout: with it, the loss falls only from "
                f"{first:.4g} to {best:.4g}",
                best,
                self.limit,
                self.n,
                "Strong dropout can cause this; reduce it if the training loss remains high on the full data set",
                "convention: 5 % of the first loss or of the chance-level loss, whichever is larger",
            )
        is_open = self.steps.timed_out or any(trial.steps.timed_out for trial in trials)
        level, doubt = "bad", ""
        if is_open:
            is_hopeful = best < _HOPEFUL * first
            level = "note" if is_hopeful else "bad" if taken >= _TELLING else "warn"
            doubt = "; time ran out" + (", so this is undecided" if level != "bad" else "")
        layer = first_constant_layer(self.model, self.pair[0]) if self.n > 1 else ""
        where = f"; the output of layer {layer!r} is the same for every input" if layer else ""
        return Finding(
            level,  # type: ignore[arg-type]
            "overfit-batch",
            layer,
            f"The model does not overfit a batch of {self.n} in {taken} steps: the loss falls only from {first:.4g} to "
            f"{best:.4g}{doubt}{where}",
            best,
            self.limit,
            self.n,
            "Look for equal inputs with different labels, labels in a different order than the images, dead units or "
            "detached branches, and a loss that does not fit the outputs",
            "5 % of the first loss or of the chance-level loss, whichever is larger; Karpathy's recipe: overfit one "
            "batch first",
        )


def _floor(model: nn.Module, pair: Pair, loss: Loss) -> float:
    """Return the chance-level loss, of uniform guessing or of predicting the mean label; 0 if it is unknown."""
    inputs, labels = pair
    with torch.no_grad():
        scores = outputs_of(call(copied(model), inputs) if samples(inputs) > 1 else call(model, inputs))
        if (chance := read_task(scores, labels, loss).chance) is not None:
            return chance
        is_regression = isinstance(labels, Tensor) and labels.is_floating_point() and scores is not None
        if is_regression and labels.shape == scores.shape and samples(inputs) > 1:  # type: ignore[union-attr]
            try:
                return float(loss_value(loss, labels.mean(dim=0, keepdim=True).expand_as(labels).clone(), labels))
            except Exception as error:  # a user-defined loss may expect an output other than a plain tensor
                raise_interruption(error)
                return 0.0
    return 0.0


def _frozen(n: int) -> Finding:
    return Finding(
        "bad",
        "frozen",
        "",
        "No parameter of the model is trainable",
        0.0,
        1.0,
        n,
        "Call requires_grad_(True) on the parameters that should learn",
        "definition",
    )


def _no_graph(n: int) -> Finding:
    return Finding(
        "bad",
        "no-gradient",
        "",
        "The loss has no graph, so nothing can learn",
        None,
        None,
        n,
        "Look for .detach(), .item(), torch.no_grad() or argmax between the model and the loss",
        "definition",
    )
