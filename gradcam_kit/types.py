"""Records and callables that travel between the parts of the package; no logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, Flag, auto
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

Images = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor `(n, c, *t)`, or a tuple (positional) or mapping (keywords) of inputs."""

Target = Callable[[Any], Tensor]
"""From the model's output to one score per sample `(n,)`."""

Reshape = Callable[[Any], Tensor]
"""From a layer's output to maps `(n, k, *s)`; a rearrangement of its values, not an arithmetic."""


class Evidence(Flag):
    """What a method needs beyond activations."""

    NONE = 0
    GRADIENTS = auto()
    """d scores / d activations: one backward pass that stops at the layer."""
    HEAD = auto()
    """The weights of a linear head behind mean pooling, if the model has one."""
    WEIGHT_GRADIENTS = auto()
    """Per sample, the gradient of the layer's summed output with respect to the layer's own weight."""
    CURVATURE = auto()
    """The second derivative of the scores at the layer, times the activations."""
    BIASES = auto()
    """Every bias of the model times the gradient at its module's output."""
    GUIDED = auto()
    """The gradient at the input with negative gradients dropped at every ReLU."""
    DERIVATIVES = GRADIENTS | CURVATURE | BIASES | GUIDED
    """Whatever needs a graph."""
    RESCORE = auto()
    """Scores of changed inputs: further forward passes."""
    PROBE = auto()
    """Activations and gradients of changed inputs: further forward and backward passes."""
    REPLAY = auto()
    """Scores of changed activations: further passes of the part behind the layer."""


class LayerChoice(Enum):
    """Which layers a method uses when none are given."""

    LAST = auto()
    """The last layer that still has positions and on which the score depends."""
    CONVOLUTIONS = auto()
    """Every convolution that runs once and on whose positions the score depends."""
    RESOLUTIONS = auto()
    """The last layer of each of the two deepest resolutions."""
    INPUT = auto()
    """The images themselves; target layers are not used."""


@runtime_checkable
class Rows(Protocol):
    """Scores of changed rows; used for inputs (`rescore`) and for activations (`replay`)."""

    def __call__(self, rows: Float[Tensor, "m k *s"], index: Int[Tensor, " m"]) -> Float[Tensor, "m *targets"]:
        """Score each row with the target of sample `index[row]`; `(m,)`, or `(m, targets)` after `(n, m)` targets."""
        ...


@runtime_checkable
class Probe(Protocol):
    """The layer's activations and gradients for changed inputs."""

    def __call__(
        self, rows: Float[Tensor, "m c *t"], index: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m k *s"], Float[Tensor, "m *tks"]]:
        """`(m, k, *s)` and `(m, [targets,] k, *s)`, each row for the target of sample `index[row]`."""
        ...


@dataclass(frozen=True)
class Head:
    """A linear head behind mean pooling, verified on the very samples of the batch.

    `logits = mean_s(activations) @ weight.T + bias`. `target_weights` is the row of the explained class, or for
    targets that are functions of the logits, the gradient of the score with respect to the logits times `weight`.
    `is_linear` says that the score is a linear function of the logits, so that changed activations have the score
    `score + target_weights @ mean_s(change)` exactly.
    """

    weight: Float[Tensor, "classes k"]
    bias: Float[Tensor, " classes"] | None
    target_weights: Float[Tensor, "n *targets k"]
    is_linear: bool


@dataclass(frozen=True)
class LayerCapture:
    """All that a method may know of one layer of one pass.

    Numbers are float32 (float64 where the model is). With `(n, m)` targets `gradients` and `scores` have an axis for
    the targets behind the one for the samples; `of_target` gives the view of one of them. `rescore_probability` scores
    changed inputs by the softmax probability of the explained class; for a target that is a callable it is `rescore`.
    """

    layer: str
    activations: Float[Tensor, "n k *s"]
    gradients: Float[Tensor, "n *mks"] | None
    scores: Float[Tensor, "n *targets"] | None
    rescore: Rows
    rescore_probability: Rows
    replay: Rows
    images: Float[Tensor, "n c *t"]
    probe: Probe
    head: Head | None = None
    weight_gradients: Float[Tensor, "n k"] | None = None
    curvature: Float[Tensor, "n *mks"] | None = None
    bias_gradients: tuple[Float[Tensor, "n ..."], ...] | None = None
    guided_gradients: Float[Tensor, "n *mct"] | None = None

    def of_target(self, j: int) -> LayerCapture:
        """The same capture for target `j` of each sample alone."""

        def column(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, j]

        def probe(rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            activations, gradients = self.probe(rows, index)
            return activations, gradients[:, j]

        return replace(
            self,
            gradients=column(self.gradients),
            scores=column(self.scores),
            rescore=lambda rows, index: self.rescore(rows, index)[:, j],
            rescore_probability=lambda rows, index: self.rescore_probability(rows, index)[:, j],
            replay=lambda rows, index: self.replay(rows, index)[:, j],
            probe=probe,
            head=self.head and replace(self.head, target_weights=self.head.target_weights[:, j]),
            curvature=column(self.curvature),
            bias_gradients=self.bias_gradients and tuple(tensor[:, j] for tensor in self.bias_gradients),
            guided_gradients=column(self.guided_gradients),
        )


@dataclass(frozen=True)
class LayerCandidate:
    """A layer that has positions; `shape` is `(k, *s)`, `reached` says whether gradients arrive at its positions."""

    name: str
    shape: tuple[int, ...]
    layout: str
    reached: bool
    chosen: bool
    reason: str
