"""The input of metrics, and the registry of named metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from torch import Tensor

from gradcam_kit.capture import Rescoring
from gradcam_kit.errors import InputError, OptionError, UnknownNameError, did_you_mean, kind_of
from gradcam_kit.metrics.checks import (
    case_checked,
    check_heatmaps,
    check_masks,
    check_numbers,
    check_rows,
    check_same_images,
)
from gradcam_kit.metrics.result import MetricResult
from gradcam_kit.metrics.rows import masked, masked_scores
from gradcam_kit.options import Registry
from gradcam_kit.types import Rescore

Explain = Callable[[Tensor], Tensor]
"""A function from changed images `(n, c, *t)` to the heatmaps `(n, *t)` of the same samples for the same classes."""

Represent = Callable[[Tensor], Tensor]
"""A function from changed images `(n, c, *t)` to the activations `(n, ...)` of the same samples."""


@dataclass(frozen=True, eq=False)
class MetricInput:
    """A batch with its heatmaps: all inputs that a metric may use.

    Attributes:
        heatmaps: `(n, *t)` in [0, 1], at the size of the images.
        images: `(n, c, *t)`, as the model gets them.
        rescore: function that returns the probability of each sample's class for changed images, as `capture.rescoring`
            yields it for these images.
        predicts: function that returns 1 for a changed image that is still predicted as its sample's class, else 0;
            None = `rescore.predicts`.
        masks: `(n, *t)` bool, True on the object.
        explain: the method itself, for metrics that run it again: images -> heatmaps for the same classes. A method
            that would explain the prediction for each changed image, such as a bare `cam`, is bound to the classes of
            `rescore`.
        seed: seed of all random draws.
        identities: `(n,)`, an integer per image, from which its draws are derived; None = derived from the values of
            the image. In both cases, the draws do not depend on the rest of the batch.
        represent: changed images -> activations `(n, ...)` of the explained layer.

    Raises:
        ShapeError: heatmaps, images, masks or identities with inconsistent shapes.
        OptionError: heatmaps outside [0, 1].
        InputError: a model as `rescore`, `rescore` of other images, or a method whose classes are not fixed.
    """

    # Annotated as plain tensors, so that wrong shapes reach the checks below and their messages.
    heatmaps: Tensor
    images: Tensor
    rescore: Rescore | None = None
    predicts: Rescore | None = None
    masks: Tensor | None = None
    explain: Explain | None = None
    seed: int = 0
    identities: Tensor | None = None
    represent: Represent | None = None

    def __post_init__(self) -> None:
        check_heatmaps(self.heatmaps, self.images)
        if self.masks is not None:
            check_masks(self.masks, self.heatmaps)
        if self.identities is not None:
            check_numbers("identities", self.identities, len(self.heatmaps))
        if self.explain is not None and not callable(self.explain):
            raise InputError(f"explain is {kind_of(self.explain)}; expected a callable from images to heatmaps")
        check_same_images(self.images, self.rescore)
        if self.predicts is not None:
            check_rows("predicts", self.predicts)
        else:
            object.__setattr__(self, "predicts", getattr(self.rescore, "predicts", None))
        if self.explain is not None and follows_predictions(self.explain):
            object.__setattr__(self, "explain", self._bound(self.explain))

    def _bound(self, explain: Callable[..., Tensor]) -> Explain:
        """Return the method bound to the classes of `rescore`."""
        if not isinstance(self.rescore, Rescoring):
            raise InputError(
                "explain would use the class predicted for each changed image; expected the same classes "
                "for all: explain=lambda changed: cam(changed, classes), or a rescore= from "
                "capture.rescoring, which fixes the classes"
            )
        known = self.rescore.classes
        return partial(explain, targets=self.rescore.target if known is None else known)

    @cached_property
    def masked_scores(self) -> tuple[Tensor, Tensor]:
        """Scores of the images and of the images times their maps, computed once for all metrics."""
        assert self.rescore is not None
        return masked_scores(self.heatmaps, self.images, self.rescore)

    @cached_property
    def masked_heatmaps(self) -> Tensor:
        """Heatmaps of the images times their maps, computed once for all metrics."""
        assert self.explain is not None
        return self.explain(masked(self.heatmaps, self.images))


def follows_predictions(explain: Callable[..., Any]) -> bool:
    """Whether a method accepts targets but has none, so that it would explain each image's own prediction."""
    try:
        targets = inspect.signature(explain).parameters.get("targets")
    except (TypeError, ValueError):  # some built-in callables have no signature
        return False
    return targets is not None and targets.default is None


_FIELDS = {field.name for field in fields(MetricInput)}
_SHARED = {name for name, value in vars(MetricInput).items() if isinstance(value, cached_property)}


@dataclass(frozen=True)
class Metric:
    """A named metric. Calling it measures a `MetricInput`.

    Attributes:
        name: name on the command line.
        function: plain function whose parameters are fields of `MetricInput` and options.
        better: "higher" or "lower"; "" if neither is better.
        cost: cost per image, in passes: F is a forward pass, E is one run of the method.
        paper: source of the metric.
        options: fixed values of some of the function's options.
    """

    name: str
    function: Callable[..., MetricResult]
    better: str
    cost: str = ""
    paper: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def uses(self) -> tuple[str, ...]:
        """The fields of `MetricInput` that the metric uses."""
        return tuple(name for name in inspect.signature(self.function).parameters if name in _FIELDS | _SHARED)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of `MetricInput`, besides heatmaps and images, that the metric requires."""
        parameters = inspect.signature(self.function).parameters
        return tuple(
            name
            for name in self.uses
            if name not in ("heatmaps", "images") and parameters[name].default is inspect.Parameter.empty
        )

    @property
    def needs_masks(self) -> bool:
        """Whether the metric needs masks of the objects."""
        return "masks" in self.needs

    def check_options(self, options: Iterable[str]) -> None:
        """Raise OptionError for an option that the metric's function does not have."""
        parameters = inspect.signature(self.function).parameters.values()
        if any(one.kind is one.VAR_KEYWORD for one in parameters):
            return
        known = [one.name for one in parameters if one.name not in _FIELDS | _SHARED]
        for name in (name for name in options if name not in known):
            said = f"its options are {', '.join(known)}" if known else "it has none"
            hint = f"; pass MetricInput(..., {name}=...)" if name in _FIELDS else did_you_mean(name, known)
            raise OptionError(f"the metric {self.name!r} has no option {name!r}; {said}{hint}")

    def describe(self, settings: Mapping[str, Any]) -> str:
        """Return one line with the better direction and all settings on which the numbers depend."""
        said = [f"{self.better} is better"] * bool(self.better)
        return f"{self.name}: " + ", ".join(said + [f"{name} {_plain(value)}" for name, value in settings.items()])

    def __call__(self, case: MetricInput, **options: Any) -> MetricResult:
        """Measure a batch and return one number per image.

        Args:
            case: the batch to measure.
            options: options of the metric's function.

        Raises:
            InputError: a field that the metric needs is None.
            OptionError: an option that the function does not have.
        """
        self.check_options([*self.options, *options])
        missing = [name for name in self.needs if getattr(case, name) is None]
        if missing:
            raise InputError(
                f"the metric {self.name!r} needs {' and '.join(missing)}, which the case does not have; "
                f"pass MetricInput(..., {', '.join(f'{name}=...' for name in missing)})"
            )
        with case_checked():  # already checked by the case; a second check would synchronize again
            given = {name: getattr(case, name) for name in self.uses}
            found = self.function(**given, **{**self.options, **options})
        return replace(found, better=self.better)


def _plain(value: Any) -> str:
    """Return a setting as text."""
    if isinstance(value, str):
        return value
    return " ".join(f"{one:g}" for one in value) if isinstance(value, (tuple, list)) else str(value)


METRICS: dict[str, Metric] = Registry("metric")
"""Every named metric, keyed by its name ("average-drop", ...)."""


def described(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe each registered metric in one line, from name -> settings; see `Metric.describe`."""
    return [METRICS[name].describe(one) for name, one in settings.items() if name in METRICS]


_Function = TypeVar("_Function", bound=Callable[..., MetricResult])


def metric(
    name: str, *, better: str, cost: str = "", paper: str = "", **options: Any
) -> Callable[[_Function], _Function]:
    """Register a plain function as the metric `name`. `options` are passed to the function on every call."""

    def register(function: _Function) -> _Function:
        taken = METRICS.get(name)
        if taken and (taken.function.__module__, taken.function.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise UnknownNameError(f"the metric name {name!r} is taken by {taken.function.__name__}; choose another")
        METRICS[name] = Metric(name, function, better, cost, paper, options)
        return function

    return register
