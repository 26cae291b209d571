"""Find images that are not normalized, normalized twice, or shifted between two data sets."""

from __future__ import annotations

import torch
from torch import Tensor

from gradcam_kit.diagnostics.checks.splits import Split
from gradcam_kit.diagnostics.findings import Finding, Level

_KNOWN = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "Inception": ((0.5,) * 3, (0.5,) * 3),
    "MNIST": ((0.1307,), (0.3081,)),
    "one half": ((0.5,), (0.5,)),
}
"""Common means and standard deviations for normalization."""

_NEAR = 0.05  # tolerance as a share of the range
_FAR_MEAN, _FAR_LOW = 1.0, -6.0
_BRIGHT = 0.2
_RAW = 10.0  # nonnegative values with a maximum above this are taken for bytes, 0 to 255
_SHIFT = 0.5  # limit of a shift, as a share of the pooled standard deviation
_ENOUGH = 32


def scale_findings(split: Split) -> list[Finding]:
    """Return findings about the range and normalization of images `(n, c, h, w)` with 1, 3 or 4 channels."""
    channels, n = split.channels, len(split)
    where = f" of {split.title}" if split.title else ""
    if not channels.count or len(channels.total) not in (1, 3, 4):
        return []
    low, high, mean = float(channels.low.amin()), float(channels.high.amax()), channels.mean
    if "uint8" in split.dtypes:
        return [_raw("warn", f"Images{where} are uint8, with values from 0 to 255", high, n)]
    if low >= 0 and high > _RAW:
        center = float(mean.mean())
        return [
            _raw("bad", f"Images{where} go from {low:.4g} to {high:.4g}: they are not scaled", high, n),
            _not_normalized("bad", f"Images{where} are not normalized: their mean is {center:.4g}", center, n),
        ]
    if (how := _normalized_twice(channels.low, channels.high, mean)) is not None:
        return [
            Finding(
                "bad",
                "normalization",
                "",
                f"Images{where} are normalized twice: {how}",
                float(mean.abs().amax()),
                _FAR_MEAN,
                n,
                "Remove one of the two normalizations: does the transform normalize, and the training loop or the "
                "model again?",
                "range of ((x - mean) / std - mean) / std for known means, or |mean| >= 1 and minimum < -6",
            )
        ]
    center = float(mean.mean())
    if low >= 0 and high <= 1 and center > _BRIGHT:
        text = f"Images{where} are not normalized: they go from {low:.2g} to {high:.2g}, with a mean of {center:.2g}"
        return [_not_normalized("warn", text, center, n)]
    return []


def transform_findings(split: Split, mean: Tensor, std: Tensor) -> list[Finding]:
    """Return a finding if the mean of normalized images is far from 0, or their standard deviation far from 1."""
    channels = split.channels
    if not channels.count or len(channels.total) != len(mean):
        return []
    worst, spread = float(channels.mean.abs().amax()), channels.std
    narrow, wide = float(spread.amin()), float(spread.amax())
    if worst < _FAR_MEAN and narrow > 0.25 and wide < 4:
        return []
    pixels = ", ".join(f"{value:.2f}" for value in (channels.mean * std + mean).tolist())
    deviations = ", ".join(f"{value:.2f}" for value in (spread * std).tolist())
    expected = [", ".join(f"{value:.2f}" for value in values.tolist()) for values in (mean, std)]
    return [
        Finding(
            "warn",
            "normalization",
            "",
            f"Pictures have means {pixels} and standard deviations {deviations} (white = 1), but are normalized with "
            f"means {expected[0]} and standard deviations {expected[1]}",
            worst if worst >= _FAR_MEAN else narrow if narrow <= 0.25 else wide,
            _FAR_MEAN if worst >= _FAR_MEAN else 0.25 if narrow <= 0.25 else 4.0,
            len(split),
            "Check that the pictures use the full range of values, and pass the mean and std of the training data",
            "convention: after normalization, a mean from -1 to 1 and a standard deviation from 1/4 to 4",
        )
    ]


def shift_findings(train: Split, test: Split) -> list[Finding]:
    """Return a finding if the mean of a channel differs between two data sets by over half a standard deviation."""
    a, b = train.channels, test.channels
    if not a.count or not b.count or len(a.total) != len(b.total) or min(len(train), len(test)) < _ENOUGH:
        return []
    pooled = ((a.std.square() + b.std.square()) / 2).sqrt()
    shift = ((a.mean - b.mean).abs() / pooled.where(pooled > 0, torch.inf)).tolist()
    worst = max(range(len(shift)), key=lambda i: shift[i])
    if shift[worst] <= _SHIFT:
        return []
    return [
        Finding(
            "warn",
            "shift",
            "",
            f"Channel {worst} has a mean of {float(b.mean[worst]):.3g} in the test set and "
            f"{float(a.mean[worst]):.3g} in the training set",
            shift[worst],
            _SHIFT,
            len(train) + len(test),
            "Use the same transform for both data sets, and compare their pictures side by side",
            "convention: difference of means in pooled standard deviations",
        )
    ]


def _raw(level: Level, text: str, high: float, n: int) -> Finding:
    return Finding(
        level,
        "range",
        "",
        text,
        high,
        1.0 if level == "bad" else None,
        n,
        "Divide by 255 and normalize: images.float() / 255, then subtract the mean and divide by the deviation",
        "8-bit pixels go from 0 to 255; models are trained on values near 0",
    )


def _not_normalized(level: Level, text: str, value: float, n: int) -> Finding:
    return Finding(
        level,
        "normalization",
        "",
        text,
        value,
        _BRIGHT,
        n,
        "Subtract the mean and divide by the deviation of each channel (with pretrained weights: of their data)",
        "LeCun et al., Efficient BackProp, 1998: inputs of mean 0; the limit is a convention",
    )


def _normalized_twice(low: Tensor, high: Tensor, mean: Tensor) -> str | None:
    for name, (means, stds) in _KNOWN.items():
        if len(means) not in (1, len(low)):
            continue
        mu, sigma = torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64)
        bottom, top = (((edge - mu) / sigma - mu) / sigma for edge in (0.0, 1.0))
        near = _NEAR * (top - bottom)
        if bool(((low - bottom).abs() <= near).all() and ((high - top).abs() <= near).all()):
            return f"the range matches that of the {name} normalization applied twice"
    worst = int(mean.abs().argmax())
    if float(mean.abs()[worst]) >= _FAR_MEAN and float(low.amin()) < _FAR_LOW:
        return f"mean {float(mean[worst]):.3g} and minimum {float(low.amin()):.3g} are far from 0"
    return None
