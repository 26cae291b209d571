"""Project embeddings to points for plots, and measure how well classes are separated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.diagnostics.maths.clusters import silhouettes
from gradcam_kit.errors import InputError, NonFiniteError, OptionError, ShapeError, kind_of, missing_extra
from gradcam_kit.options import one_of, positive, positive_int, whole
from gradcam_kit.targets.names import read_class_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("pca", "tsne")
_PERPLEXITY = 30.0


@dataclass(frozen=True, eq=False, repr=False)
class Projection:
    """Embeddings projected to a few dimensions; displayed in notebooks.

    Attributes:
        points: `(n, components)` float64.
        labels: the label of each point; None without labels.
        names: label -> name of its group, in the order of the legend; empty without labels.
        method: "pca" or "tsne".
        explained: share of the variance along each component of "pca"; None for "tsne", whose axes have no meaning.
        silhouette: mean silhouette of the embeddings themselves, not of the points, in [-1, 1]; None without labels or
            with a single group.
        silhouette_of: name of a group -> mean silhouette of its samples; empty where `silhouette` is None.
    """

    points: Float[Tensor, "n c"]
    labels: tuple[Any, ...] | None
    names: dict[Any, str]
    method: str
    explained: tuple[float, ...] | None
    silhouette: float | None
    silhouette_of: dict[str, float]

    def plot(self) -> Figure:
        """Plot the first two components, with a color for each group.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from gradcam_kit.diagnostics.show.comparisons import plot_points

        return plot_points(self)

    def __str__(self) -> str:
        parts = [f"{len(self.points):,} samples by {self.method}"]
        if self.explained is not None:
            parts.append(f"{sum(self.explained):.0%} of the variance shown")
        if self.silhouette is not None:
            parts.append(f"silhouette of the embeddings {self.silhouette:.3f}")
        rows = [f"  {name}: {value:.3f}" for name, value in self.silhouette_of.items()]
        return "\n".join([", ".join(parts), *rows])

    def __repr__(self) -> str:
        return f"Projection({self.method}, {len(self.points)} points)"

    def _repr_html_(self) -> str:
        from gradcam_kit.diagnostics.show.comparisons import as_html

        return as_html(self)


def project(
    embeddings: Any,
    labels: Any = None,
    method: str = "pca",
    *,
    components: int = 2,
    perplexity: SupportsFloat | None = None,
    class_names: Any = None,
    seed: int = 0,
) -> Projection:
    """Project embeddings to a few dimensions, and measure how well their groups are separated.

    "pca" is exact, needs no extra package, and keeps the distances along the shown directions. "tsne" (van der Maaten &
    Hinton, JMLR 2008; scikit-learn) shows neighborhoods; the sizes of groups and the distances between groups have no
    meaning. The silhouette (Rousseeuw, 1987) is therefore computed from the embeddings, not from the points.

    Args:
        embeddings: `(n, k)`, a tensor or an array of at least 3 samples.
        labels: one label for each sample, an integer or a string; None = unknown.
        method: "pca" or "tsne".
        components: number of dimensions of the points; at most min(n - 1, k) for "pca", and at most 3 for "tsne".
        perplexity: perplexity of "tsne", roughly the number of neighbors of a point; None = 30, or about n / 3 if that
            is less.
        class_names: names of integer labels.
        seed: seed of "tsne"; global random states are neither used nor changed.

    Raises:
        ShapeError: embeddings of a different shape, fewer than 3 samples, or unequal numbers of labels and samples.
        NonFiniteError: NaN or infinite embeddings.
        InputError: embeddings or labels of an unsupported type.
        OptionError: an unknown method, or `components` or `perplexity` too large for the number of samples.
        MissingExtraError: scikit-learn, which "tsne" needs, is not installed.

    Example:
        >>> points = torch.cat([torch.zeros(8, 5), torch.ones(8, 5)]) + 0.01 * torch.randn(16, 5)
        >>> project(points, [0] * 8 + [1] * 8).silhouette > 0.9
        True
    """
    one_of("method", method, METHODS)
    wide = _read(embeddings)
    n, k = wide.shape
    most = min(n - 1, k) if method == "pca" else 3
    if positive_int("components", components) > most:
        raise OptionError(f"components is {components}; expected at most {most} with {method!r} (n = {n}, k = {k})")
    if perplexity is not None and positive("perplexity", perplexity) >= n:
        raise OptionError(f"perplexity is {perplexity}; expected less than the number of samples, {n}")
    near = min(_PERPLEXITY, max(1.0, (n - 1) / 3)) if perplexity is None else float(perplexity)
    groups = None if labels is None else _groups(labels, n)
    names = _names(groups, class_names)
    explained = None
    if method == "pca":
        points, explained = _pca(wide, components)
    else:
        points = _tsne(wide, components, near, whole("seed", seed))
    mean, by_group = _silhouette(wide, groups, names)
    return Projection(points, groups, names, method, explained, mean, by_group)


def _read(embeddings: Any) -> Float[Tensor, "n k"]:
    if isinstance(embeddings, np.ndarray) and embeddings.dtype.kind in "biuf":
        embeddings = torch.from_numpy(embeddings)
    if isinstance(embeddings, Sequence) and not isinstance(embeddings, str) and embeddings:
        if all(isinstance(one, Tensor) for one in embeddings):
            raise InputError("the embeddings are a list of tensors; join them first: torch.cat(embeddings)")
        embeddings = torch.as_tensor(embeddings)
    if not isinstance(embeddings, Tensor):
        raise InputError(f"the embeddings are {kind_of(embeddings)}; expected a tensor or an array (n, k)")
    if embeddings.ndim != 2 or len(embeddings) < 3 or not embeddings.shape[1]:
        raise ShapeError(
            f"the embeddings have shape {tuple(embeddings.shape)}; expected (n, k) with at least 3 samples. Reduce "
            "maps (n, k, h, w) with .mean((2, 3))"
        )
    wide = embeddings.detach().to("cpu", torch.float64)
    if not bool(wide.isfinite().all()):
        broken = int((~wide.isfinite().all(1)).sum())
        raise NonFiniteError(f"NaN or infinite values occur in {broken} of {len(wide)} embeddings; leave these out")
    return wide


def _groups(labels: Any, n: int) -> tuple[Any, ...]:
    if isinstance(labels, Tensor | np.ndarray):
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise ShapeError(
                f"the labels have shape {tuple(labels.shape)}; expected (n,), one label for each of {n} samples. "
                "Convert one-hot labels to indices with labels.argmax(1)"
            )
        labels = labels.tolist()
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise InputError(f"the labels are {kind_of(labels)}; expected one label for each of {n} samples, or None")
    if len(labels) != n:
        raise ShapeError(f"there are {len(labels)} labels for {n} embeddings; expected one label for each embedding")
    return tuple(int(one) if isinstance(one, bool | float) and one == int(one) else one for one in labels)


def _names(groups: tuple[Any, ...] | None, class_names: Any) -> dict[Any, str]:
    if groups is None:
        return {}
    found = sorted(set(groups), key=lambda one: (isinstance(one, str), one))
    if class_names is None:
        return {one: str(one) for one in found}
    names = read_class_names(class_names)
    return {one: names[one] if isinstance(one, int) and 0 <= one < len(names) else str(one) for one in found}


def _pca(wide: Float[Tensor, "n k"], components: int) -> tuple[Float[Tensor, "n c"], tuple[float, ...]]:
    """Project onto the directions of largest variance; in each, the coefficient of largest magnitude is positive."""
    centered = wide - wide.mean(0)
    left, values, directions = torch.linalg.svd(centered, full_matrices=False)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))[:, 0]
    signs = torch.where(largest < 0, -1.0, 1.0).double()
    variance = values.square()
    total = float(variance.sum())
    shares = (variance[:components] / total).tolist() if total > 0 else [0.0] * components
    return (left * values * signs)[:, :components], tuple(shares)


def _tsne(wide: Float[Tensor, "n k"], components: int, perplexity: float, seed: int) -> Float[Tensor, "n c"]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        need = 'project(method="tsne") needs scikit-learn'
        raise missing_extra(need, "diagnostics", 'method="pca" works without it') from error
    made = TSNE(components, perplexity=perplexity, init="random" if components > wide.shape[1] else "pca",
                learning_rate="auto", random_state=seed)  # fmt: skip
    return torch.from_numpy(np.asarray(made.fit_transform(wide.numpy()), dtype=np.float64))


def _silhouette(
    wide: Float[Tensor, "n k"], groups: tuple[Any, ...] | None, names: dict[Any, str]
) -> tuple[float | None, dict[str, float]]:
    if groups is None or not len(names) >= 2:
        return None, {}
    places = {one: place for place, one in enumerate(names)}
    index = torch.tensor([places[one] for one in groups])
    values = silhouettes(wide, index)
    return float(values.mean()), {name: float(values[index == places[one]].mean()) for one, name in names.items()}
