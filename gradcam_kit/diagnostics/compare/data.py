"""Compare the features of two data sets, layer by layer: shifts of means, and a test of distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.checks.batches import BatchOf
from gradcam_kit.diagnostics.compare.feature_sets import FeatureSet, Units
from gradcam_kit.diagnostics.compare.inputs import inputs_of, loaders_left_as_found
from gradcam_kit.diagnostics.compare.reading import feature_reader
from gradcam_kit.diagnostics.compare.tables import frame, text_table
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.maths.distances import mmd
from gradcam_kit.errors import OptionError, ShapeError, UnknownNameError, did_you_mean
from gradcam_kit.options import positive_int, whole
from gradcam_kit.significance import holm

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

LEVEL = 0.05
"""Significance level after correction: the largest rate of false alarms for equal distributions."""
SHIFTED = 0.5
"""Difference of means, in pooled standard deviations, above which a unit counts as shifted."""
_PERMUTATIONS = 500
_LEAST = 4  # minimum number of samples in each data set


@dataclass(frozen=True)
class LayerShift:
    """Differences in the features of one layer between two data sets.

    Attributes:
        name: name of the layer.
        shift: the largest |difference of means| / pooled standard deviation over its units.
        unit: index of the unit with that shift.
        shifted: share of the units with a shift above 0.5.
        mmd: the unbiased estimate of MMD squared; about 0 for equal distributions.
        p: p-value of the permutation test, uncorrected.
        p_adjusted: p corrected for the number of layers (Holm); below 0.05, the layer counts as shifted.
        units: number of units.
    """

    name: str
    shift: float
    unit: int
    shifted: float
    mmd: float
    p: float
    p_adjusted: float
    units: int


@dataclass(frozen=True, repr=False)
class DataComparison:
    """Differences between two data sets as seen by a model; displayed in notebooks.

    Attributes:
        layers: one row per layer, sorted by p (the smallest first), then by MMD (the largest first).
        findings: one finding of kind "shift" for the layer ranked first, if any layer is shifted; else empty.
        n_train: number of samples in the first data set.
        n_test: number of samples in the second data set.
        permutations: number of permutations for each p-value.
        skipped: layer -> why it is not compared.
        notes: remarks on the numbers.
    """

    layers: tuple[LayerShift, ...]
    findings: tuple[Finding, ...]
    n_train: int
    n_test: int
    permutations: int
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, layer: str) -> LayerShift:
        for row in self.layers:
            if row.name == layer:
                return row
        names = [row.name for row in self.layers]
        raise UnknownNameError(f"no layer {layer!r} was compared{did_you_mean(layer, names)}")

    def to_pandas(self) -> pandas.DataFrame:
        """Return the ranked rows as a table.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame([asdict(row) for row in self.layers], columns=[one.name for one in fields(LayerShift)])

    def plot(self) -> Figure:
        """Plot the shift and the corrected p-value of each layer, in ranked order.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from gradcam_kit.diagnostics.show.comparisons import plot_shifts

        return plot_shifts(self.layers, LEVEL, SHIFTED)

    def __str__(self) -> str:
        head = f"{len(self.layers)} layers, {self.n_train:,} and {self.n_test:,} samples."
        names = ("name", "shift", "shifted", "mmd", "p", "p_adjusted", "units")
        rows = text_table(names, [[getattr(row, name) for name in names] for row in self.layers])
        return "\n".join([*map(str, self.findings), *(f"NOTE {note}" for note in self.notes), head, *rows])

    def __repr__(self) -> str:
        shifted = sum(row.p_adjusted < LEVEL for row in self.layers)
        return f"DataComparison({len(self.layers)} layers, {shifted} shifted)"

    def _repr_html_(self) -> str:
        from gradcam_kit.diagnostics.show.comparisons import as_html

        return as_html(self)


def compare_data(
    model: nn.Module,
    train_loader: Any,
    test_loader: Any,
    layers: Any = None,
    *,
    batch: BatchOf | None = None,
    samples: int = 256,
    permutations: int | None = None,
    seed: int = 0,
) -> DataComparison:
    r"""Test layer by layer whether two data sets, such as a training and a test set, look different to a model.

    The model runs in eval mode. Features are means over positions. The shift of a unit is
    $|\mu_{test} - \mu_{train}| / \sqrt{(\sigma_{train}^2 + \sigma_{test}^2) / 2}$ over all samples. The test is MMD
    (Gretton et al., JMLR 2012) on a random subset of the samples, with p-values from permutations. The p-values are
    corrected for the number of layers (Holm, 1979), so that at most one in twenty comparisons of equal distributions
    reports a shift.

    Args:
        model: any model; it is not changed.
        train_loader: the first data set: a loader of batches, whose labels are not used, or a tensor of images.
        test_loader: the second data set, in the same forms; its length may differ.
        layers: a dotted name, a wildcard, a module, a type, a sequence of these, or None: all modules without children.
        batch: function that extracts the images from an item of a loader.
        samples: maximum number of samples of each data set in the test, drawn uniformly at random.
        permutations: number of permutations for each p-value; None = 500, or more if the correction for many layers
            requires it.
        seed: seed of the random subset and of the permutations; global random states are neither used nor changed.

    Raises:
        LayerNotFoundError: a pattern that matches no module.
        InputError: a loader without images.
        ShapeError: fewer than 4 samples in a data set, or a layer whose number of units differs between the data sets.
        NonFiniteError: NaN or infinite features.
        OptionError: `samples` below 4, or `permutations` below 1.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> images = torch.randn(64, 8)
        >>> [finding.kind for finding in compare_data(model, images[:32], images[32:] + 3).findings]
        ['shift']
    """
    if whole("samples", samples) < _LEAST:
        raise OptionError(f"samples is {samples}; expected at least {_LEAST}")
    if permutations is not None:
        positive_int("permutations", permutations)
    sets = []
    with loaders_left_as_found(train_loader, test_loader), feature_reader(model, layers) as reader:
        for place, (what, loader) in enumerate((("train loader", train_loader), ("test loader", test_loader))):
            own = FeatureSet(what, samples, np.random.default_rng((seed, place)))
            for inputs in inputs_of(loader, batch, what):
                own.add(reader, inputs)
            if own.n < _LEAST:
                raise ShapeError(f"the {what} gives {own.n} samples; a comparison needs at least {_LEAST}")
            sets.append(own)
        skipped = {**reader.skipped, **dict.fromkeys(reader.never_ran, "never ran")}
        notes = list(reader.notes)
    train, test = sets
    names = [name for name in train.units if name in test.units]
    skipped |= dict.fromkeys(train.units.keys() ^ test.units.keys(), "ran for only one of the two data sets")
    for name in names:
        a, b = len(train.units[name].mean), len(test.units[name].mean)
        if a != b:
            raise ShapeError(
                f"layer {name!r} has {a} units for the train loader and {b} for the test loader; use images of one "
                "size, or select layers whose number of units does not depend on the size"
            )
    needed = math.ceil(2 * len(names) / LEVEL)
    count = max(_PERMUTATIONS, needed) if permutations is None else permutations
    if len(names) / (count + 1) >= LEVEL:
        notes.append(
            f"With {count} permutations and {len(names)} layers, the smallest possible corrected p is "
            f"{len(names) / (count + 1):.2g}, so no shift can be found; use permutations={needed}, or None."
        )
    tests = [mmd(train.drawn(name), test.drawn(name), permutations=count, seed=seed) for name in names]
    adjusted = holm([one.p for one in tests])
    rows = [
        _row(name, train.units[name], test.units[name], one.value, one.p, corrected)
        for name, one, corrected in zip(names, tests, adjusted, strict=True)
    ]
    ranked = sorted(rows, key=lambda row: (row.p_adjusted, row.p, -row.mmd))
    return DataComparison(
        tuple(ranked), tuple(_findings(rows, ranked, train.n, test.n)), train.n, test.n, count, skipped, tuple(notes)
    )


def _findings(rows: Sequence[LayerShift], ranked: Sequence[LayerShift], n_train: int, n_test: int) -> list[Finding]:
    """Return at most one finding for all layers, because a shift of one layer usually shifts all later layers."""
    shifted = [row for row in ranked if row.p_adjusted < LEVEL]
    if not shifted:
        return []
    row = shifted[0]
    first = next(one.name for one in rows if one.p_adjusted < LEVEL)
    begins = "the inputs themselves differ" if first == rows[0].name else f"the first shifted layer is {first!r}"
    said = (
        f"The two data sets look different to {len(shifted)} of {len(ranked)} layers (corrected p); in this one, "
        f"ranked first, the mean of unit {row.unit} moves by {row.shift:.2g} standard deviations, and "
        f"{row.shifted:.0%} of {row.units} means by more than {SHIFTED}; {begins}"
    )
    source = "MMD: Gretton et al. 2012; correction: Holm 1979"
    return [Finding("warn", "shift", row.name, said, row.p_adjusted, LEVEL, n_train + n_test, advice.SHIFT, source)]


def _row(name: str, a: Units, b: Units, value: float, p: float, adjusted: float) -> LayerShift:
    difference = (b.mean - a.mean).abs()
    # Units that vary only by rounding count as constant.
    rounding = torch.finfo(torch.float32).eps * torch.maximum(a.mean.abs(), b.mean.abs())
    pooled = ((a.variance + b.variance) / 2).sqrt()
    shift = (difference / torch.maximum(pooled, rounding)).masked_fill(difference <= rounding, 0.0)
    worst = int(shift.argmax())
    return LayerShift(
        name, float(shift[worst]), worst, float((shift > SHIFTED).double().mean()), value, p, adjusted, len(shift)
    )
