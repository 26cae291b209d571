"""Measure the importance of each unit of a layer by one of four methods, for pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, SupportsFloat

from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture import check_observable, select_layers
from gradcam_kit.diagnostics.checks.batches import BatchOf, pairs_of
from gradcam_kit.diagnostics.compare.ablation import ablate
from gradcam_kit.diagnostics.compare.inputs import inputs_of, loaders_left_as_found
from gradcam_kit.diagnostics.compare.reading import FeatureReader, feature_reader
from gradcam_kit.diagnostics.compare.tables import frame, text_table
from gradcam_kit.diagnostics.compare.unit_scores import score_units
from gradcam_kit.diagnostics.kinds import inputs_per_unit
from gradcam_kit.errors import InputError, OptionError, ShapeError, UnknownNameError, did_you_mean
from gradcam_kit.options import finite_number, one_of, positive_int
from gradcam_kit.similarity import spearman

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

METHODS = ("activation", "gradient", "taylor", "ablation")


@dataclass(frozen=True, eq=False, repr=False)
class LayerImportance(Mapping[str, Tensor]):
    """A mapping from layers, in the order of execution, to the importance of their units; displayed in notebooks.

    Attributes:
        method: "activation", "gradient", "taylor" or "ablation".
        units: layer -> one number per unit, `(k,)` float64; the larger, the more the unit matters. For "ablation", the
            number is the increase in loss, negative for a unit without which the model is better.
        n: number of samples.
        skipped: layer -> why it has no numbers.
        notes: remarks on what was not observed, and why.
    """

    method: str
    units: dict[str, Float[Tensor, " _"]]
    n: int
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, layer: str) -> Float[Tensor, " k"]:
        if layer not in self.units:
            reason = f": {self.skipped[layer]}" if layer in self.skipped else did_you_mean(layer, self.units)
            raise UnknownNameError(f"there is no measured importance of layer {layer!r}{reason}")
        return self.units[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    def agreement(self, other: LayerImportance) -> dict[str, float]:
        """Return the Spearman rank correlation with another result, for each layer in both results; 1 = same order.

        The correlation is NaN if a layer has a single unit, or if all its units are equally important.

        Raises:
            ShapeError: layers with different numbers of units.
        """
        found = {}
        for name in (name for name in self if name in other.units):
            a, b = self.units[name], other.units[name]
            if len(a) != len(b):
                raise ShapeError(
                    f"layer {name!r} has {len(a)} units in one result and {len(b)} in the other; compare results of "
                    "one model"
                )
            found[name] = float(spearman(a[None], b[None]))
        return found

    def least(self, share: SupportsFloat = 0.3) -> dict[str, list[int]]:
        """Return indices of the least important units of each layer, the least important first; never all units.

        Args:
            share: share of the units of a layer to return, in [0, 1].

        Raises:
            OptionError: `share` is outside [0, 1].
        """
        part = finite_number("share", share)
        if not 0 <= part <= 1:
            raise OptionError(f"share is {share!r}; expected a number in [0, 1]")
        return {
            name: values.argsort(stable=True)[: min(int(part * len(values)), len(values) - 1)].tolist()
            for name, values in self.units.items()
        }

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row per unit: layer, unit, importance, and rank in its layer (0 = least important).

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [
            {"layer": name, "unit": unit, "importance": value, "rank": rank}
            for name, values in self.units.items()
            for unit, (value, rank) in enumerate(
                zip(values.tolist(), values.argsort(stable=True).argsort().tolist(), strict=True)
            )
        ]
        return frame(rows, columns=["layer", "unit", "importance", "rank"])

    def plot(self) -> Figure:
        """Plot the importance of each layer's units in descending order, as a share of the largest.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from gradcam_kit.diagnostics.show.comparisons import plot_importance

        return plot_importance(self.units, self.method)

    def __str__(self) -> str:
        rows = [
            [name, len(values), float(values.max()), float(values.median()), float(values.min()), int(values.argmin())]
            for name, values in self.units.items()
        ]
        head = f"Importance by {self.method}, {self.n:,} samples."
        columns = ("layer", "units", "most", "median", "least", "least important")
        return "\n".join([head, *(f"NOTE {note}" for note in self.notes), *text_table(columns, rows)])

    def __repr__(self) -> str:
        return f"LayerImportance({self.method}, {len(self.units)} layers, {self.n} samples)"

    def _repr_html_(self) -> str:
        from gradcam_kit.diagnostics.show.comparisons import as_html

        return as_html(self)


def layer_importance(
    model: nn.Module,
    loader: Any,
    method: str = "taylor",
    *,
    layers: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    batch: BatchOf | None = None,
    batch_size: int = 256,
) -> LayerImportance:
    r"""Measure the importance of each unit (channel, feature) in eval mode, for pruning.

    With the activations a of a unit and the gradients g of each sample's loss:

    - "activation": the mean of |a| over samples and positions. One forward pass, without labels.
    - "gradient": the mean of |g|. One forward and one backward pass.
    - "taylor": the mean over samples of $|\sum a g|$ over positions, the change of the loss to first order if the unit
      were 0 (Molchanov et al., ICLR 2017). As cheap as "gradient".
    - "ablation": the mean increase in loss if the unit is set to 0. Exact, but the most expensive method, because the
      part of the model after the layer runs again for each unit and batch.

    Args:
        model: any model; it is not changed.
        loader: iterable of batches `(images, labels)`; "activation" needs only the images.
        method: one of the four methods.
        layers: a dotted name, a wildcard, a module, a type, a sequence of these, or None: all convolutions and linear
            layers, except those whose output is the output of the model.
        loss: `loss(output, labels)`; None = the cross-entropy. A loss that returns a single number is computed sample
            by sample.
        batch: function that converts an item of the loader to a pair `(images, labels)`.
        batch_size: maximum number of rows (samples times ablated units) in one pass of "ablation".

    Raises:
        LayerNotFoundError: a pattern that matches no module.
        InputError: an empty loader, a loader without labels although the method needs them, or no layer with several
            units.
        OptionError: an unknown method, or a `batch_size` below 1.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> loader = [(torch.randn(32, 8), torch.randint(4, (32,)))]
        >>> taylor, ablation = (layer_importance(model, loader, method) for method in ("taylor", "ablation"))
        >>> taylor["0"].shape, list(taylor.agreement(ablation))
        (torch.Size([16]), ['0'])
    """
    one_of("method", method, METHODS)
    positive_int("batch_size", batch_size)
    inner = check_observable(model)
    chosen = select_layers(inner, layers, model)  # before the first batch, so that a wrong name fails early
    with ExitStack() as stack:
        stack.enter_context(loaders_left_as_found(loader))
        pairs = _pairs(loader, method, batch)
        first = next(pairs)
        with feature_reader(model, list(chosen.values())) as reader:
            reader(first[0])
        if layers is None:
            weighted = [name for name, module in chosen.items() if inputs_per_unit(module) is not None]
            inside = [name for name in weighted if name not in reader.output_of]
            chosen = {name: chosen[name] for name in inside or weighted or chosen}
        skipped = {name: reason for name, reason in _unusable(reader, method).items() if name in chosen}
        usable = {name: module for name, module in chosen.items() if name not in skipped}
        if not usable:
            raise InputError(
                f"no layer has units to measure: {'; '.join(f'{name} {reason}' for name, reason in skipped.items())}"
            )
        axes = {name: reader.unit_axes[name] for name in reader.unit_axes if name in usable}
        batches = chain([first], pairs)
        if method == "ablation":
            totals, n, notes = ablate(inner, {name: usable[name] for name in axes}, axes, batches, loss, batch_size)
        else:
            totals, n, notes = score_units(model, usable, axes, batches, loss, method)
    missing = {name: "got no gradient" for name in axes if name not in totals}
    return LayerImportance(
        method, {name: totals[name] / n for name in axes if name in totals}, n, {**skipped, **missing}, tuple(notes)
    )


def _pairs(loader: Any, method: str, batch: BatchOf | None) -> Iterator[tuple[Any, Any]]:
    """Yield images and labels; labels are None if the method does not need them."""
    if method == "activation":
        for images in inputs_of(loader, batch):
            yield images, None
        return
    try:
        yield from pairs_of(loader, batch)
    except InputError as error:
        if "without labels" in str(error) or isinstance(loader, Tensor):
            raise InputError(
                f"{error}; method {method!r} needs labels for the loss; only method='activation' works without labels"
            ) from error
        raise


def _unusable(reader: FeatureReader, method: str) -> dict[str, str]:
    found = {**{name: f"returned {reason}" for name, reason in reader.skipped.items()}}
    found |= dict.fromkeys(reader.never_ran, "never ran")
    found |= {name: "has a single unit" for name, axis in reader.unit_axes.items() if axis is None}
    if method == "ablation":
        found |= {name: f"ran {calls} times for one batch" for name, calls in reader.calls.items() if calls > 1}
    return found
