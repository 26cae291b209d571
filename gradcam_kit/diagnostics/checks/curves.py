"""Check the loss curves of a training run for divergence, plateaus, overfitting, noise and leaked validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.errors import InputError, did_you_mean, kind_of

_NAMES = {
    "train_loss": "train_loss",
    "loss": "train_loss",
    "validation_loss": "validation_loss",
    "val_loss": "validation_loss",
    "valid_loss": "validation_loss",
}
_ROSE = 0.5  # minimum rise of a diverged loss, as a share of the first loss
_FLAT = 0.01
_FEWEST = 6  # minimum number of points for judging the shape of a curve
_PASSED, _PASSED_SHARE = 5, 0.2  # minimum number of points since the best one, absolute and as a share of all
_NOISE = 0.5  # maximum noise, as a share of the total descent
_SIGMAS, _GAP = 3.0, 0.1


def check_curves(history: Any) -> list[Finding]:
    """Check the loss curves of a training run, with one value per epoch or step.

    Args:
        history: mapping with `train_loss` (or `loss`) and, optionally, `validation_loss` (or `val_loss`,
            `valid_loss`), each a sequence of numbers.

    Returns:
        Findings, the most severe first. Possible kinds: nonfinite, diverged, plateau, overfit, update (for noise) and
        leak. Curves of fewer than 6 points are checked only for non-finite values and divergence.

    Raises:
        InputError: no known curve, or values that are not numbers.

    Example:
        >>> check_curves({"train_loss": [2.3, 2.4, 9.0, 40.0]})[0].kind
        'diverged'
    """
    curves = _read(history)
    found = []
    for name, values in curves.items():
        broken = [i for i, value in enumerate(values) if not math.isfinite(value)]
        if broken:
            found.append(_nonfinite(name, values, broken))
    finite = {name: values for name, values in curves.items() if all(map(math.isfinite, values))}
    for name, values in finite.items():
        found += _diverged(name, values)
    train, validation = finite.get("train_loss"), finite.get("validation_loss")
    is_diverged = any(finding.kind == "diverged" for finding in found)
    if train is not None and not is_diverged:
        found += _shape(train)
    if train is not None and validation is not None and not is_diverged:
        found += _overfit(train, validation)
        found += _leak(train, validation)
    return worst_first(found)


def diverged(values: Sequence[float], chance: float = 0.0) -> float | None:
    """Return the median loss in the last third of a curve that diverged, else None.

    A curve of at least 3 values diverged if this median is above 1.5 times the first value and above 1.5 times
    `chance`, the chance-level loss (0 = unknown).
    """
    if len(values) < 3:
        return None
    last = median(_third(values, 2))
    return last if last > values[0] + _ROSE * abs(values[0]) and last > (1 + _ROSE) * chance else None


def _read(history: Any) -> dict[str, list[float]]:
    if not isinstance(history, Mapping):
        raise InputError(f"the history is {kind_of(history)}; expected a mapping such as {{'train_loss': [2.3, 1.9]}}")
    curves: dict[str, list[float]] = {}
    for name, values in history.items():
        if name not in _NAMES:
            continue
        try:
            curves[_NAMES[name]] = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise InputError(f"history[{name!r}] holds values that are not numbers: {error}") from error
    if not any(curves.values()):
        keys = ", ".join(map(repr, history)) or "nothing"
        hint = "".join(did_you_mean(str(key), _NAMES) for key in history)
        raise InputError(f"the history has {keys}; expected train_loss and, optionally, validation_loss{hint}")
    return {name: values for name, values in curves.items() if values}


def _nonfinite(name: str, values: Sequence[float], broken: Sequence[int]) -> Finding:
    return Finding(
        "bad",
        "nonfinite",
        "",
        f"{name} is {values[broken[0]]} for the first time at point {broken[0] + 1} of {len(values)}",
        float(len(broken)),
        0.0,
        len(values),
        "Call find_nonfinite(model) to find the module at fault; lower the learning rate or clip gradients",
        "definition",
    )


def _diverged(name: str, values: Sequence[float]) -> list[Finding]:
    last = diverged(values)
    if last is None:
        return []
    return [
        Finding(
            "bad" if name == "train_loss" else "warn",
            "diverged",
            "",
            f"{name} rose from {values[0]:.4g} to {last:.4g}",
            last,
            values[0] + _ROSE * abs(values[0]),
            len(values),
            "Lower the learning rate by a factor of 10, add a warmup, and check the sign of the loss",
            "convention: the median of the last third is above 1.5 times the first value",
        )
    ]


def _shape(train: Sequence[float]) -> list[Finding]:
    if len(train) < _FEWEST:
        return []
    found = []
    second, third = median(_third(train, 1)), median(_third(train, 2))
    slope = abs(third - second) / abs(second) if second else 0.0
    if slope < _FLAT:
        found.append(
            Finding(
                "note",
                "plateau",
                "",
                f"train_loss remains at {third:.4g} over the last two thirds of the curve",
                slope,
                _FLAT,
                len(train),
                "If the loss should be lower, change the learning rate, check that gradients reach all layers, and try "
                "to overfit one batch (can_overfit)",
                "convention: relative change between the medians of the last two thirds",
            )
        )
    bends = [train[i - 1] - 2 * train[i] + train[i + 1] for i in range(1, len(train) - 1)]
    noise = median(map(abs, bends)) / (
        0.6745 * math.sqrt(6)
    )  # normal noise of deviation 1 gives bends of deviation sqrt(6) and median magnitude 0.6745 sqrt(6)
    descent = max(train[0], median(_third(train, 0))) - min(train)
    if descent > 0 and noise > _NOISE * descent:
        found.append(
            Finding(
                "note",
                "update",
                "",
                "train_loss varies from point to point by more than half of its total descent",
                noise / descent,
                _NOISE,
                len(train),
                "Lower the learning rate or enlarge the batch, so that steps follow the mean gradient more closely",
                "convention: noise of second differences as a share of the descent",
            )
        )
    return found


def _overfit(train: Sequence[float], validation: Sequence[float]) -> list[Finding]:
    n = min(len(train), len(validation))
    if n < _FEWEST:
        return []
    train, validation = train[:n], validation[:n]
    best = min(range(n), key=lambda i: validation[i])
    passed, limit = n - 1 - best, max(_PASSED, math.ceil(_PASSED_SHARE * n))
    now = median(validation[-3:])
    is_above = now > validation[best] + 0.02 * abs(validation[best])
    is_falling = median(train[-3:]) < train[best]
    if passed < limit or not is_above or not is_falling:
        return []
    return [
        Finding(
            "warn",
            "overfit",
            "",
            f"validation_loss was best at point {best + 1} ({validation[best]:.4g}) and is {now:.4g} now, while "
            "train_loss still falls",
            float(passed),
            float(limit),
            n,
            "Stop at the best point, augment the data, or regularize (weight decay, dropout, a smaller model)",
            "convention: at least 5 points, and 20 % of all points, since the minimum",
        )
    ]


def _leak(train: Sequence[float], validation: Sequence[float]) -> list[Finding]:
    n = min(len(train), len(validation))
    if n < _FEWEST:
        return []
    gaps = [a - b for a, b in zip(train[n // 2 : n], validation[n // 2 : n], strict=True)]
    mean, spread = fmean(gaps), stdev(gaps)
    level = abs(fmean(train[n // 2 : n]))
    if mean <= max(_SIGMAS * spread, _GAP * level):
        return []
    return [
        Finding(
            "warn",
            "leak",
            "",
            f"validation_loss is below train_loss by {mean:.4g} on average in the second half of the curves",
            mean,
            max(_SIGMAS * spread, _GAP * level),
            n,
            "Look for samples of the training set in the validation set (check_data(train, test)); strong "
            "dropout or augmentation, which apply only in training, can have the same effect",
            "convention: 3 standard deviations of the gap, and 10 % of the loss",
        )
    ]


def _third(values: Sequence[float], index: int) -> Sequence[float]:
    size = max(1, len(values) // 3)
    return values[:size] if index == 0 else values[-size:] if index == 2 else values[size:-size]
