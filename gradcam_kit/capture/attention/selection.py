"""Find the softmaxes that are attention among an image's tokens, judged by shapes, not by names of modules."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_leaves

from gradcam_kit.capture.layouts import Tokens, token_layout
from gradcam_kit.capture.model.inputs import Inputs
from gradcam_kit.capture.provenance.evidence import Evidence
from gradcam_kit.errors import CaptureError, ShapeError


@dataclass
class Block:
    """The output of the outermost module that contains exactly one attention and returns the tokens.

    Attributes:
        name: name of the module.
        module: the module.
        leaves: leaves of its output.
        place: index of the leaf with the tokens.
        spec: structure of the output, which `tree_unflatten` needs.
        calls: modules that finished before this one, with their outputs; empty if block gradients are not needed.
    """

    name: str
    module: nn.Module
    leaves: list[Any]
    place: int
    spec: TreeSpec
    calls: list[tuple[nn.Module, Any]]

    @property
    def tokens(self) -> Tensor:
        """The output tokens of the block."""
        tokens: Tensor = self.leaves[self.place]
        return tokens


@dataclass
class SeenAttention:
    """One softmax over keys.

    Attributes:
        name: name of the innermost module that was running.
        shape: shape of the softmax, whose last two axes are queries and keys.
        probabilities: the softmax; None unless queries and keys are equal in number.
        factors: queries and transposed keys, the factors of the product before the softmax; None if not observed.
        values: right factor of the product after the softmax; None if not observed.
        output: result of the product after the softmax; None if not observed.
        block: the block that contains the softmax; None if no module around it returns the tokens.
        returns_other_tokens: whether a module around it returns another number of tokens, such as a pooling query.
    """

    name: str
    shape: tuple[int, ...]
    probabilities: Tensor | None
    factors: tuple[Tensor, Tensor] | None = None
    values: Tensor | None = None
    output: Tensor | None = None
    block: Block | None = None
    returns_other_tokens: bool = False

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.shape[-2]

    @property
    def keys(self) -> int:
        """Number of keys."""
        return self.shape[-1]

    def is_of(self, texts: Set[tuple[int, ...]]) -> bool:
        """Whether the attention is among text tokens, given the shapes `(texts, tokens)` of the integer inputs."""
        return any(text[1:] == (self.keys,) and self.shape[0] % max(text[0], 1) == 0 for text in texts)

    def groups(self, n: int) -> int:
        """Return the number of windows, frames or axes into which each of n images is split; 0 if none fits."""
        if len(self.shape) == 3:
            return int(self.shape[0] % n == 0)
        parts = prod(self.shape[:-3])
        return parts // n if parts % n == 0 else 0


def attention_among_tokens(
    seen: Sequence[SeenAttention], model: nn.Module, inputs: Inputs, evidence: Evidence | None = None
) -> tuple[list[SeenAttention], Tokens]:
    """Return the attentions in which all tokens of an image attend to each other, and the layout of these tokens.

    Other attention (of text, or of a pooling query) is left out.

    Raises:
        CaptureError: the model has no such attention, or its tokens attend only within windows, to merged tokens, or in
            blocks with different numbers of tokens.
    """
    known: dict[int, Tokens | None] = {}
    layouts: dict[int, Tokens] = {}
    plain: list[SeenAttention] = []
    others = tree_leaves((inputs.args, inputs.kwargs))
    texts = {tuple(leaf.shape) for leaf in others if isinstance(leaf, Tensor) and not leaf.is_floating_point()}
    for one in seen:
        groups = one.groups(inputs.n)
        tokens = one.queries * groups
        if tokens not in known:
            known[tokens] = _layout(tokens, inputs.size, model, evidence)
        layout = known[tokens]
        if layout is None or one.is_of(texts):
            continue
        if groups > 1:
            raise _partial(model, f"that of {one.name!r} is split into {groups} windows of {one.queries} tokens each")
        if one.block is None and one.returns_other_tokens:
            continue
        if one.queries > one.keys:
            raise _partial(model, f"in {one.name!r}, {one.queries} tokens attend to {one.keys} merged tokens")
        if one.queries == one.keys:
            layouts[one.queries] = layout
            plain.append(one)
    if len(layouts) > 1:
        counts = " and ".join(map(str, layouts))
        raise _partial(model, f"its blocks have {counts} tokens")
    if not layouts:
        found = ", ".join(sorted({"x".join(map(str, one.shape)) for one in seen})) or "none"
        raise CaptureError(
            f"{type(model).__name__} has no attention among the tokens of an image (softmax over keys seen: {found}); "
            "attention methods need a transformer whose attention is computed by torch. Use GradCAM or another method"
        )
    (layout,) = layouts.values()
    return plain, layout


def _layout(tokens: int, size: tuple[int, ...], model: nn.Module, evidence: Evidence | None) -> Tokens | None:
    verdict = evidence.of_tokens(tokens) if evidence else None
    if verdict is not None:
        layout = verdict.layout
        return layout if isinstance(layout, Tokens) and not layout.suffix and layout.order is None else None
    try:
        return token_layout(tokens, size, model, "")
    except ShapeError:
        return None


def _partial(model: nn.Module, reason: str) -> CaptureError:
    return CaptureError(
        "attention methods follow the same tokens through all blocks, but the attention of "
        f"{type(model).__name__} is not between all tokens: {reason}. Use GradCAM or another method that does not "
        "use attention"
    )
