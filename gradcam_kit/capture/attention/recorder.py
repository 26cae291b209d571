"""Record the attention of every block in the forward pass, so that scores can be differentiated with respect to it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.attention.explicit import ExplicitAttention
from gradcam_kit.capture.attention.selection import Block, SeenAttention, attention_among_tokens
from gradcam_kit.capture.balance.backward import balanced
from gradcam_kit.capture.deferred_checks import Checks
from gradcam_kit.capture.gradients.backward import differentiate
from gradcam_kit.capture.layouts import ChannelsFirst, Tokens, has_class_token
from gradcam_kit.capture.model.forks import is_scripted
from gradcam_kit.capture.model.inputs import Inputs
from gradcam_kit.capture.model.trees import move_tree
from gradcam_kit.capture.provenance.evidence import Evidence as Origins
from gradcam_kit.capture.provenance.settling import InDoubtError
from gradcam_kit.capture.recording import LayerRecord
from gradcam_kit.capture.rerun.prefix import Prefix
from gradcam_kit.capture.rerun.replay import Replayer
from gradcam_kit.capture.rerun.rescore import Rescorer
from gradcam_kit.errors import CaptureError
from gradcam_kit.functional import at_least_float32
from gradcam_kit.types import Attention, Evidence, GradientRule, Projections

_OUTPUT = "output of the last attention"
_DERIVATIVES = Evidence.ATTENTION_GRADIENTS | Evidence.BLOCK_GRADIENTS | Evidence.PROJECTIONS


@dataclass(frozen=True)
class Heads:
    """The layout of a tensor whose axes of images and heads are merged, such as `(n * heads, tokens, d)`."""

    n: int

    def to_maps(self, output: Tensor) -> Float[Tensor, "n heads tokens d"]:
        """Separate the heads into their own axis."""
        return output.reshape(self.n, -1, *output.shape[-2:])

    def to_native(self, maps: Float[Tensor, "n heads tokens d"], like: Tensor) -> Tensor:
        """Merge the axis of the heads with the axis of the images again."""
        return maps.reshape(like.shape)


@dataclass
class _Frame:
    """A running module: the attentions inside it, its finished children, and its last matrix product."""

    name: str
    module: nn.Module | None
    attentions: list[SeenAttention] = field(default_factory=list)
    calls: list[tuple[nn.Module, Any]] = field(default_factory=list)
    product: tuple[Tensor, Tensor, torch.Size] | None = None


class AttentionRecorder:
    """Records the attention of one forward pass in one thread."""

    def __init__(self, model: nn.Module, inputs: Inputs, needs: Evidence, origins: Origins | None = None) -> None:
        self.origins = origins
        self.model, self.inputs, self.n, self.needs = model, inputs, inputs.n, needs
        self.thread = threading.get_ident()
        self.recording = True
        modules = ((name, module) for name, module in model.named_modules() if not is_scripted(module))
        self.names = {module: name or type(model).__name__ for name, module in modules}
        self.frames = [_Frame(type(model).__name__, None)]
        self.seen: list[SeenAttention] = []
        self.layout = Tokens((), 0)
        self.own: dict[str, LayerRecord] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the hooks, and make attention explicit, for the duration of the block."""
        with holding_hooks() as attach:
            for module in self.names:
                attach.before(module, self._enter)
                attach.after(module, self._leave)
            with ExplicitAttention(self):
                yield

    @property
    def _observes(self) -> bool:
        return self.recording and threading.get_ident() == self.thread

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._observes:
            self.frames.append(_Frame(self.names[module], module))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._observes:
            return
        while (frame := self.frames.pop()).module is not module:
            pass  # the frame of a module that raised an exception, which the model caught
        self.frames[-1].attentions += frame.attentions
        if len(frame.attentions) == 1:
            self._see_block(frame, module, output)
        if Evidence.BLOCK_GRADIENTS in self.needs:
            self.frames[-1].calls.append((module, output))

    def _see_block(self, frame: _Frame, module: nn.Module, output: Any) -> None:
        seen = frame.attentions[0]
        leaves, spec = tree_flatten(output)
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.ndim < 3:
                continue
            if self._has_tokens(leaf, seen.keys):
                calls = []
                if Evidence.BLOCK_GRADIENTS in self.needs:
                    leaves[place] = leaf.clone()  # copy, because the next block may change the output in place
                    calls = [call for outer in self.frames for call in outer.calls]
                seen.block = Block(frame.name, module, leaves, place, spec, calls)
                return
            seen.returns_other_tokens |= leaf.ndim == 3 and leaf.shape[0] == self.n

    def _has_tokens(self, leaf: Tensor, tokens: int) -> bool:
        if leaf.shape[0] == self.n and (leaf.shape[1] == tokens or leaf.ndim > 3):
            return tokens in (leaf.shape[1], prod(leaf.shape[1:-1]), prod(leaf.shape[2:]))
        return leaf.ndim == 3 and tuple(leaf.shape[:2]) == (tokens, self.n)

    def see_softmax(self, probabilities: Tensor) -> Tensor:
        """Record the attention of the innermost running module, and start a graph at it if derivatives need one."""
        shape = tuple(probabilities.shape)
        square = shape[-1] == shape[-2]
        if square and self.needs & _DERIVATIVES and not probabilities.requires_grad:
            probabilities = probabilities.detach().requires_grad_()
        if not self._observes:
            return probabilities
        products = (frame.product for frame in reversed(self.frames) if frame.product)
        factors = next(((left, right) for left, right, own in products if own == shape), None)
        one = SeenAttention(self.frames[-1].name, shape, probabilities if square else None, factors)
        self.seen.append(one)
        if not square:
            return probabilities
        self.frames[-1].attentions.append(one)
        return probabilities.clone()  # a later in-place operation must not change the record

    def see_product(self, left: Tensor, right: Tensor, product: Tensor) -> Tensor:
        """Record the queries and keys before a softmax, and the values and the output after it."""
        if Evidence.PROJECTIONS not in self.needs or not self._observes:
            return product
        self.frames[-1].product = (left, right, product.shape)
        last = next((one for frame in reversed(self.frames) for one in frame.attentions[-1:]), None)
        if last and last.output is None and tuple(left.shape) == last.shape:
            last.values, last.output = right, product
            return product.clone()
        return product

    def records(self) -> dict[str, LayerRecord]:
        """End the recording, and return the tensors with respect to which scores are differentiated, as layer records.

        Raises:
            CaptureError: the model has no attention among all tokens of an image, or its queries, keys and values could
                not be observed.
            InDoubtError: the origin of the tokens has not been traced yet.
        """
        self.recording, self.frames = False, []
        if self.seen and self.origins is None:  # do not trace the origin of tokens for a model without attention
            raise InDoubtError
        self.seen, self.layout = attention_among_tokens(self.seen, self.model, self.inputs, self.origins)
        for one in self.seen:
            while (name := f"attention of {one.name}") in self.own:
                one.name += " again"
            self.own[name] = self._record(name, one.probabilities)
        if Evidence.PROJECTIONS in self.needs:
            self.own[_OUTPUT] = self._record(_OUTPUT, self.seen[-1].output)
        return self.own

    @property
    def differentiated(self) -> list[str]:
        """Return the names of the records with respect to which the shared backward pass differentiates the scores."""
        attentions = [f"attention of {one.name}" for one in self.seen if Evidence.ATTENTION_GRADIENTS in self.needs]
        return attentions + [_OUTPUT] * (Evidence.PROJECTIONS in self.needs)

    def _record(self, name: str, tensor: Tensor | None) -> LayerRecord:
        if tensor is None or (name == _OUTPUT and self.seen[-1].factors is None):
            raise CaptureError(
                f"queries, keys and values of {self.seen[-1].name!r} could not be observed; expected one "
                "matrix product before the softmax and one after it. Use another method"
            )
        leaves, spec = tree_flatten(tensor)
        return LayerRecord(name, self.model, calls=1, leaves=leaves, chosen=[0], spec=spec, layout=Heads(self.n))

    def block_gradients(
        self, rescorer: Rescorer, scores: Tensor, checks: Checks, rule: GradientRule = "exact"
    ) -> tuple[Tensor, ...]:
        """Return, per block, d (score of the block's output tokens) / d attention, `(n, [m,] heads, queries, keys)`.

        A block's tokens are scored as if they were the output of the last block: by the part of the model after the
        last block.

        Raises:
            CaptureError: a block does not return the tokens, blocks return them in different layouts, or a score does
                not depend on a block's attention.
        """
        blocks = [one.block for one in self.seen if one.block is not None]
        last = blocks[-1] if blocks else None
        if last is None or [block.tokens.shape for block in blocks] != [last.tokens.shape] * len(self.seen):
            raise CaptureError(
                f"the output tokens of each block of {type(self.model).__name__} could not be scored; expected one "
                "module per block, all with outputs of the same shape. Use generic-attention"
            )
        record = LayerRecord(
            last.name, last.module, leaves=last.leaves, chosen=[last.place], spec=last.spec, layout=ChannelsFirst()
        )
        expected = move_tree(at_least_float32(scores.detach()), self.inputs.images.device)
        replayer = Replayer(rescorer, record, Prefix.of(last.calls, ()), expected, checks)
        found = []
        for one, block in zip(self.seen, blocks, strict=True):
            own = scores if block is last else replayer.with_graph(block.tokens)
            found.append(self._gradient(one, own, rule))
        return tuple(found)

    def _gradient(self, one: SeenAttention, scores: Tensor, rule: GradientRule) -> Tensor:
        assert one.probabilities is not None
        with nullcontext() if rule == "exact" else balanced(scores, [one.probabilities]):
            columns = [column for (column,) in differentiate(scores, [one.probabilities], keep=True)]
        if any(column is None for column in columns):
            raise CaptureError(
                f"the score of the output tokens of {one.name!r} does not depend on its attention, or the "
                "model cuts the "
                "gradient between them (detach, no_grad, or a reentrant checkpoint); use attention-rollout"
            )
        maps = [Heads(self.n).to_maps(column) for column in columns if column is not None]
        return torch.stack(maps, 1) if scores.ndim == 2 else maps[0]

    def evidence(
        self,
        rules: Iterable[GradientRule],
        gradients: Mapping[tuple[str, GradientRule], Tensor],
        block_gradients: Mapping[GradientRule, tuple[Tensor, ...]],
        checks: Checks,
    ) -> dict[GradientRule, Attention]:
        """Return the attention evidence for each gradient rule, and release the graph."""
        for record in self.own.values():
            record.leaves = [leaf.detach() for leaf in record.leaves]
        found = {}
        for rule in rules:
            own = {name: gradient for (name, by), gradient in gradients.items() if by == rule}
            found[rule] = self._evidence(own, block_gradients.get(rule), checks)
        self.seen = []
        return found

    def _evidence(
        self, gradients: Mapping[str, Tensor], block_gradients: tuple[Tensor, ...] | None, checks: Checks
    ) -> Attention:
        attentions = [f"attention of {one.name}" for one in self.seen]
        own = [gradients[name] for name in attentions if name in gradients]
        found = Attention(
            blocks=tuple(one.name for one in self.seen),
            probabilities=tuple(at_least_float32(self.own[name].maps(self.own[name].captured)) for name in attentions),
            grid=self.layout.grid,
            prefix=self.layout.prefix,
            has_class_token=has_class_token(self.model, self.layout.prefix),
            gradients=tuple(own) or None,
            block_gradients=block_gradients,
            projections=self._projections(gradients[_OUTPUT]) if _OUTPUT in gradients else None,
        )
        if found.projections and found.has_class_token:
            reached = (found.projections.gradients != 0).any(-1)
            checks.add((reached.any() & ~reached[..., 0].any())[None], partial(_no_class_token, found.blocks[-1]))
        return found

    def _projections(self, gradients: Float[Tensor, "n *m heads tokens d"]) -> Projections:
        last = self.seen[-1]
        assert last.factors is not None
        assert last.values is not None

        def joined(tensor: Tensor) -> Tensor:
            return at_least_float32(Heads(self.n).to_maps(tensor.detach()).movedim(1, 2).flatten(2))

        return Projections(
            queries=joined(last.factors[0]),
            keys=joined(last.factors[1].mT),
            values=joined(last.values),
            gradients=gradients.movedim(-3, -2).flatten(-2),
        )


def _no_class_token(name: str, _sample: int) -> CaptureError:
    return CaptureError(
        f"no gradient reaches the class token in {name!r}: the score is pooled from the patch tokens alone; use "
        "generic-attention, or GradCAM with target_layers=None"
    )
