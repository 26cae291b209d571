"""Records and callables shared by the parts of the package; no logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, Flag, auto
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.renamed import former_names

Images = Tensor | Sequence[Any] | Mapping[str, Any]
"""Inputs of a model: one tensor `(n, c, *t)`, or a tuple (positional) or mapping (keywords) of inputs."""

Target = Callable[[Any], Tensor]
"""A function from the model's output to one score per sample `(n,)`."""

Reshape = Callable[[Any], Tensor]
"""A function from a layer's output to maps `(n, k, *s)` that only rearranges values."""


GradientRule = Literal["exact", "balanced"]
"""Rule for gradients at a layer: exact, or balanced, for which normalizations, gates and attention are constant."""


class Evidence(Flag):
    """Evidence that a method needs beyond activations."""

    NONE = 0
    GRADIENTS = auto()
    """d scores / d activations: one backward pass that stops at the layer."""
    HEAD = auto()
    """The weights of a linear head after mean pooling, if the model has one."""
    WEIGHT_GRADIENTS = auto()
    """Per sample and channel, the mean gradient of the layer's summed output with respect to its last weight."""
    CURVATURE = auto()
    """The second derivative of the scores at the layer, times the activations."""
    BIASES = auto()
    """Every bias of the model times the gradient at its module's output."""
    GUIDED = auto()
    """The gradient at the input with negative gradients dropped at every ReLU."""
    ATTENTION = auto()
    """The attention of every block, computed explicitly where kernels are fused."""
    ATTENTION_GRADIENTS = auto()
    """d scores / d attention of every block."""
    BLOCK_GRADIENTS = auto()
    """Per block, d (scores of the block's own output tokens) / d attention."""
    PROJECTIONS = auto()
    """Queries, keys and values of the last block's attention, and the gradient of the scores at its output."""
    DERIVATIVES = GRADIENTS | CURVATURE | BIASES | GUIDED | ATTENTION_GRADIENTS | BLOCK_GRADIENTS | PROJECTIONS
    """Evidence that needs a graph."""
    RESCORE = auto()
    """Scores of changed inputs: further forward passes."""
    PROBE = auto()
    """Activations and gradients of changed inputs: further forward and backward passes."""
    REPLAY = auto()
    """Scores of changed activations: further passes of the part after the layer."""
    DETECTIONS = auto()
    """Similarity of detections in changed inputs to the explained detection, for targets that are boxes."""
    RULED = GRADIENTS | BIASES | ATTENTION_GRADIENTS | BLOCK_GRADIENTS | PROJECTIONS | PROBE
    """Gradients that follow the gradient rule of a method."""


class LayerChoice(Enum):
    """The layers that a method uses if none are given."""

    BLOCK = auto()
    """The input normalization of the last transformer block."""
    LAST = auto()
    """The last spatial layer on which the score depends."""
    CONVOLUTIONS = auto()
    """Every convolution on whose positions the score depends; one layer per call if its calls form a chain."""
    RESOLUTIONS = auto()
    """The last layer of each of the two deepest resolutions; layers that only pad their input are ignored."""
    STREAM = auto()
    """The first layer of tokens and the output of every block on the same grid; LAST for models without tokens."""
    INPUT = auto()
    """The images themselves; target layers are not used."""
    ATTENTION = auto()
    """The attention of all blocks; target layers are not used."""

    @property
    def is_fixed(self) -> bool:
        """Whether the choice is independent of the target layers."""
        return self in (LayerChoice.INPUT, LayerChoice.ATTENTION)


@runtime_checkable
class Rescore(Protocol):
    """Scores of changed inputs."""

    def __call__(self, rows: Float[Tensor, "m k *s"], index: Int[Tensor, " m"]) -> Float[Tensor, "m *targets"]:
        """Score each row with the target of sample `index[row]`, `(m,)`, or with all its targets, `(m, targets)`."""
        ...


@runtime_checkable
class Replay(Protocol):
    """Scores of the model as if the layer had produced other activations."""

    def __call__(
        self,
        rows: Float[Tensor, "m k *s"],
        index: Int[Tensor, " m"],
        residual: Float[Tensor, "m k *s"] | None = None,
    ) -> Float[Tensor, "m *targets"]:
        """Score rows as `Rescore` does; `residual` replaces the layer's input wherever else the model uses it."""
        ...


@runtime_checkable
class Probe(Protocol):
    """The layer's activations and gradients for changed inputs."""

    def __call__(
        self, rows: Float[Tensor, "m c *t"], index: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m k *s"], Float[Tensor, "m *tks"]]:
        """Return activations `(m, k, *s)` and gradients `(m, [targets,] k, *s)` for the targets of `index[row]`."""
        ...


@dataclass(frozen=True)
class Head:
    """A linear head after mean pooling, verified on the samples of the batch.

    `logits = mean_s(activations) @ weight.T + bias`, up to a constant per sample. `target_weights` is the row of
    `weight` of the explained class, or for other targets d score / d logits times `weight`. `is_linear` tells whether
    the score is a logit that equals the formula without a constant, so that changed activations have exactly the score
    `score + target_weights @ mean_s(change)`.
    """

    weight: Float[Tensor, "classes k"]
    bias: Float[Tensor, " classes"] | None
    target_weights: Float[Tensor, "n *targets k"]
    is_linear: bool


@dataclass(frozen=True)
class Projections:
    """Inputs and gradients of the last block's attention, with heads concatenated in `d`.

    `gradients` is d scores / d output, where the output is `attention @ values` before the output projection.
    """

    queries: Float[Tensor, "n tokens d"]
    keys: Float[Tensor, "n tokens d"]
    values: Float[Tensor, "n tokens d"]
    gradients: Float[Tensor, "n *m tokens d"]


@dataclass(frozen=True)
class Attention:
    """The attention of all blocks in which the tokens of an image attend to each other, in the order in which they ran.

    Attributes:
        blocks: names of the modules that compute the attention.
        probabilities: the attention of each block.
        grid: number of tokens along each axis of the image.
        prefix: number of tokens before those of the grid (class, distillation, registers; the class token first).
        has_class_token: whether the first token is a class token.
        gradients: d scores / d attention of each block.
        block_gradients: d (scores of each block's own output tokens) / d attention of the block.
        projections: inputs and gradients of the last block's attention.
    """

    blocks: tuple[str, ...]
    probabilities: tuple[Float[Tensor, "n heads queries keys"], ...]
    grid: tuple[int, ...]
    prefix: int
    has_class_token: bool
    gradients: tuple[Float[Tensor, "n *m heads queries keys"], ...] | None = None
    block_gradients: tuple[Float[Tensor, "n *m heads queries keys"], ...] | None = None
    projections: Projections | None = None

    def for_needs(self, needs: Evidence) -> Attention | None:
        """Return the view for a method with these needs; None without ATTENTION."""
        if Evidence.ATTENTION not in needs:
            return None
        return replace(
            self,
            gradients=self.gradients if Evidence.ATTENTION_GRADIENTS in needs else None,
            block_gradients=self.block_gradients if Evidence.BLOCK_GRADIENTS in needs else None,
            projections=self.projections if Evidence.PROJECTIONS in needs else None,
        )

    def of_target(self, j: int) -> Attention:
        """Return the view of target `j` of each sample."""
        own = self.projections
        return replace(
            self,
            gradients=self.gradients and tuple(tensor[:, j] for tensor in self.gradients),
            block_gradients=self.block_gradients and tuple(tensor[:, j] for tensor in self.block_gradients),
            projections=own and replace(own, gradients=own.gradients[:, j]),
        )


@dataclass(frozen=True)
class LayerCapture:
    """Everything that a method may use of one layer in one pass; evidence not requested by `needs` is None.

    Numbers are float32, or float64 for a float64 model. With `(n, m)` targets, `gradients`, `scores` and everything
    else that depends on a target have a target axis after the sample axis. `BaseCAM.weights` and `BaseCAM.saliency`
    get the view of one target (`of_target`), and `BaseCAM.saliencies` gets the capture with all targets.

    Attributes:
        layer: the layer's name.
        activations: the layer's output as maps. Tokens are laid out on their grid, without the prefix tokens.
        gradients: d scores / d activations. Evidence.GRADIENTS.
        scores: the explained scores, such as the logit of the class; None if they are neither needed nor readable.
        rescore: scores of changed images, `rescore(images (r, c, *t), index (r,)) -> (r,)`, where `index` gives the
            sample whose target scores each row. Any number of rows runs in passes of `batch_size`. Evidence.RESCORE.
        rescore_probability: the same for the probability of the class, which is the softmax unless the model shows
            another kind of outputs (`targets.scores.evident_kind`). For a callable target it is `rescore`.
        rescore_similarity: similarity of the detections in changed images to the explained detection, for targets that
            are boxes. Evidence.DETECTIONS.
        replay: scores as if the layer had produced these activations, `replay(activations (r, k, *s), index (r,))`;
            only the part of the model after the layer runs. Evidence.REPLAY.
        images: the model's images.
        probe: the layer's activations and gradients for changed images. Evidence.PROBE.
        head: the linear head after mean pooling, if the model has one. Evidence.HEAD.
        weight_gradients: mean gradient of the layer's summed output with respect to its last weight, per channel, for
            models without such a head. Evidence.WEIGHT_GRADIENTS.
        residual: the layer's input, for `replay`; None unless a module computed it and it has the output's shape.
        curvature: second derivatives of the scores, times the activations. Evidence.CURVATURE.
        bias_gradients: every bias times the gradient at its module's output. Evidence.BIASES.
        guided_gradients: the gradient at the input by guided backpropagation. Evidence.GUIDED.
        attention: attention of all blocks. Evidence.ATTENTION and its variants.
    """

    layer: str
    activations: Float[Tensor, "n k *s"]
    gradients: Float[Tensor, "n *mks"] | None
    scores: Float[Tensor, "n *targets"] | None
    rescore: Rescore
    rescore_probability: Rescore
    replay: Replay
    images: Float[Tensor, "n c *t"]
    probe: Probe
    rescore_similarity: Rescore | None = None
    head: Head | None = None
    weight_gradients: Float[Tensor, "n k"] | None = None
    residual: Float[Tensor, "n k *s"] | None = None
    curvature: Float[Tensor, "n *mks"] | None = None
    bias_gradients: tuple[Float[Tensor, "n ..."], ...] | None = None
    guided_gradients: Float[Tensor, "n *mct"] | None = None
    attention: Attention | None = None

    def of_target(self, j: int) -> LayerCapture:
        """Return the same capture, reduced to target `j` of each sample."""

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
            replay=lambda rows, index, residual=None: self.replay(rows, index, residual)[:, j],
            probe=probe,
            head=self.head and replace(self.head, target_weights=self.head.target_weights[:, j]),
            curvature=column(self.curvature),
            bias_gradients=self.bias_gradients and tuple(tensor[:, j] for tensor in self.bias_gradients),
            guided_gradients=column(self.guided_gradients),
            attention=self.attention and self.attention.of_target(j),
        )


@dataclass(frozen=True)
class LayerCandidate:
    """A layer with positions. `shape` is `(k, *s)`, and `layout` the type of its layout.

    `reached` tells whether gradients arrive at the layer's positions, `normalizes` whether each of its own parameters
    has one entry per channel, `hidden` whether it runs inside a reentrant checkpoint, which hides its gradient, and
    `chosen` whether it is the automatic choice, for the given `reason`. `outermost` is the shortest name of a module
    that returned the same tensor.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    reached: bool
    normalizes: bool
    chosen: bool
    reason: str
    hidden: bool = False
    outermost: str = ""


__getattr__ = former_names(__name__, {"Rows": "Rescore"})
