"""Find layers of two models with similar representations, and layers of one model that change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import check_observable
from gradcam_kit.diagnostics import advice
from gradcam_kit.diagnostics.checks.batches import BatchOf, samples
from gradcam_kit.diagnostics.compare.inputs import inputs_of, loaders_left_as_found
from gradcam_kit.diagnostics.compare.reading import FeatureReader, Pooled, feature_reader
from gradcam_kit.diagnostics.compare.tables import frame
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.kinds import FEW_INPUTS, inputs_per_unit
from gradcam_kit.diagnostics.maths.distances import PairwiseCKA
from gradcam_kit.diagnostics.maths.spectra import effective_rank
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.errors import ShapeError
from gradcam_kit.options import positive_int

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

UNCHANGED = 0.999
"""CKA between a layer's input and output from which the layer counts as changing nothing."""
_LEAST = 4  # minimum number of samples in a batch
_JUDGED = 8  # minimum number of samples in total for verdicts
# With fewer classes, a low rank is not a fault: trained features of c classes span c - 1 directions (neural collapse,
# Papyan et al. 2020).
_FEW_OUTPUTS = 4


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison:
    """Similarity of the layers of two models `a` and `b` on the same images; displayed in notebooks.

    Attributes:
        cka: `(len a, len b)` float64: minibatch CKA of each layer of `a` with each of `b`, about 0 (unrelated) to 1
            (equal up to rotation and scale); NaN where the features of a layer are constant.
        layers_a: names of the layers of `a`, the rows, in the order of execution.
        layers_b: names of the layers of `b`, the columns, in the order of execution.
        findings: findings about layers that change nothing or have collapsed, if a model is compared with itself; else
            empty.
        n: number of samples.
        skipped: layer -> why it is not compared.
        notes: remarks on what was not observed, and why.
    """

    cka: Float[Tensor, "a b"]
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    findings: tuple[Finding, ...]
    n: int
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def nearest(self) -> dict[str, tuple[str, float]]:
        """Return, for each layer of `a`, the most similar layer of `b` and the CKA of the pair."""
        known = self.cka.nan_to_num(-torch.inf)
        best = known.argmax(1).tolist()
        return {
            name: (self.layers_b[place], float(self.cka[row, place]))
            for row, (name, place) in enumerate(zip(self.layers_a, best, strict=True))
        }

    def to_pandas(self) -> pandas.DataFrame:
        """Return the CKA of all pairs of layers as a table.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame(self.cka.numpy(), index=self.layers_a, columns=self.layers_b)

    def plot(self) -> Figure:
        """Plot the CKA of all pairs of layers as a matrix.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from gradcam_kit.diagnostics.show.comparisons import plot_matrix

        return plot_matrix(self.cka.numpy(), self.layers_a, self.layers_b, f"CKA of layers, {self.n:,} samples")

    def __str__(self) -> str:
        width = max(map(len, self.layers_a))
        rows = [f"{name:<{width}}  {near} {value:.3f}" for name, (near, value) in self.nearest().items()]
        head = f"{len(self.layers_a)} x {len(self.layers_b)} layers, {self.n:,} samples; the most similar ones:"
        return "\n".join([*map(str, self.findings), *(f"NOTE {note}" for note in self.notes), head, *rows])

    def __repr__(self) -> str:
        return f"ModelComparison({len(self.layers_a)} x {len(self.layers_b)} layers, {self.n} samples)"

    def _repr_html_(self) -> str:
        from gradcam_kit.diagnostics.show.comparisons import as_html

        return as_html(self)


def compare_models(
    a: nn.Module,
    b: nn.Module,
    images: Any,
    layers: Any = None,
    *,
    layers_b: Any = None,
    batch: BatchOf | None = None,
    batch_size: int = 64,
) -> ModelComparison:
    """Compare the layers of two models by CKA on the same images, with both models in eval mode.

    Features are means over positions. CKA is computed from minibatches, with the unbiased estimate of HSIC (Nguyen,
    Raghu & Kornblith, ICLR 2021), so that memory does not grow with the number of images. If a model is compared with
    itself, without `layers_b`, the features of all images are kept and its layers are also judged: a layer whose output
    has a CKA of at least 0.999 with its own input changes nothing, and features that span fewer than 2 directions have
    collapsed.

    Args:
        a: any model; it is not changed.
        b: another model, or the same one.
        images: a tensor `(n, c, ...)`, or a loader of batches, whose labels are not used.
        layers: a dotted name, a wildcard ("layer*.conv2"), a module, a type, a sequence of these, or None: all modules
            without children.
        layers_b: layers of `b`, in the same forms; None = the same as `layers`.
        batch: function that extracts the images from an item of the loader.
        batch_size: maximum size of the batches into which a tensor is split; less than 4 is treated as 4.

    Raises:
        LayerNotFoundError: a pattern that matches no module of a model.
        ShapeError: fewer than 4 images.
        NonFiniteError: NaN or infinite features.
        InputError: a loader without images.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> compare_models(model, model, torch.randn(32, 8)).cka.shape
        torch.Size([3, 3])
    """
    same = check_observable(a) is check_observable(b) and layers_b is None
    pairs, judged = PairwiseCKA(), _Judged()
    total = dropped = 0
    with ExitStack() as stack:
        stack.enter_context(loaders_left_as_found(images))
        first = stack.enter_context(feature_reader(a, layers, inputs=same))
        second = first if same else stack.enter_context(feature_reader(b, layers if layers_b is None else layers_b))
        names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        for inputs in inputs_of(
            images, batch, "loader", batch_size=max(_LEAST, positive_int("batch_size", batch_size))
        ):
            n = samples(inputs)
            if n < _LEAST:
                dropped += n
                continue
            own = first(inputs)
            other = own if same else second(inputs)
            names = names or (tuple(own), tuple(other))
            rows = list(_in_order(own, names[0]))
            pairs.add(rows, rows if same else list(_in_order(other, names[1])))
            total += n
            if same:
                judged.add(first)
        if names is None:
            raise ShapeError(f"all batches have fewer than {_LEAST} images; CKA needs at least {_LEAST} per batch")
        skipped = {
            **first.skipped,
            **second.skipped,
            **dict.fromkeys((*first.never_ran, *second.never_ran), "never ran"),
        }
        notes = dict.fromkeys((*first.notes, *second.notes))
    if dropped:
        notes[
            f"CKA needs at least {_LEAST} images per batch; images left out, because their batch has fewer: {dropped}."
        ] = None
    findings = judged.findings(first, total) if same else []
    return ModelComparison(pairs.value, *names, tuple(findings), total, skipped, tuple(notes))


def _in_order(features: Pooled, names: Iterable[str]) -> Iterator[Tensor]:
    """Yield features in the order of the first batch.

    Raises:
        ShapeError: a layer that ran for the first batch did not run for this one.
    """
    for name in names:
        if name not in features:
            raise ShapeError(f"layer {name!r} ran for the first batch, but not for all; select layers that always run")
        yield features[name]


class _Judged:
    """Statistics of inputs and outputs of layers with weights."""

    def __init__(self) -> None:
        self.pairs: dict[str, PairwiseCKA] = {}
        self.features: dict[str, list[Tensor]] = {}

    def add(self, reader: FeatureReader) -> None:
        """Add the features of the last batch of the reader."""
        for name, features in reader.features.items():
            if name in reader.inputs and _mixes(reader.layers[name]) and reader.inputs[name].shape[1] >= FEW_INPUTS:
                self.pairs.setdefault(name, PairwiseCKA()).add([reader.inputs[name]], [features])
                self.features.setdefault(name, []).append(features.cpu())

    def findings(self, reader: FeatureReader, n: int) -> list[Finding]:
        """Judge all layers except output layers; of the collapsed layers, report only the first, the likely cause."""
        found: list[Finding] = []
        if n < _JUDGED:
            return found
        limits = Thresholds()
        outputs = [len(reader.features[name][0]) for name in reader.output_of if name in reader.features]
        for name, pair in self.pairs.items():
            if name in reader.output_of:
                continue
            features = torch.cat(self.features[name])
            value, units, rank = float(pair.value[0, 0]), features.shape[1], effective_rank(features)
            few = (
                units < FEW_INPUTS or n < limits.collapsed_samples or max(outputs, default=_FEW_OUTPUTS) < _FEW_OUTPUTS
            )
            if rank < limits.rank and (rank == 0 or not few):
                said = (
                    f"The features of {units} units span {rank:.2f} directions, so later layers can distinguish little"
                )
                source = "effective rank: Roy & Vetterli 2007; limit: convention"
                found.append(Finding("bad", "collapsed", name, said, rank, limits.rank, n, advice.COLLAPSED, source))
                return found
            if value >= UNCHANGED:
                said = "The layer changes nothing: by CKA, its output distinguishes samples just as its input does"
                source = "Nguyen, Raghu & Kornblith 2021; limit: convention"
                found.append(Finding("warn", "collapsed", name, said, value, UNCHANGED, n, advice.UNCHANGED, source))
        return found


def _mixes(module: nn.Module) -> bool:
    """Whether a layer combines units by weights, so that it is expected to change something."""
    return any(inputs_per_unit(part) is not None for part in module.modules())
