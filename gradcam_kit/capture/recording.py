"""Record the exact activations of layers in one forward pass, with forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from gradcam_kit.capture.attaching import Hooks, holding_hooks
from gradcam_kit.capture.layouts import ChannelsFirst, Custom, Layout, recurrent_layout
from gradcam_kit.capture.model.inputs import Inputs
from gradcam_kit.capture.model.layers import split_name
from gradcam_kit.capture.model.state import version
from gradcam_kit.capture.model.trees import tensors_of
from gradcam_kit.capture.provenance.evidence import Evidence
from gradcam_kit.capture.provenance.settling import InDoubtError, settle_layout
from gradcam_kit.errors import CaptureError, ShapeError
from gradcam_kit.types import Reshape

INPUT = "<input>"
"""Name of the images as a target layer, for methods that explain the input."""
ATTENTION = "<attention>"
"""Name of the attention of all blocks as a target layer, for methods that explain the attention."""
NOT_MODULES = (INPUT, ATTENTION)


@dataclass
class LayerRecord:
    """The recorded output of one layer.

    Attributes:
        name: name of the layer, with the call and the level if they are selected ("path#2", "path:0"), or a name in
            `NOT_MODULES`.
        module: the layer.
        level: index of the map, if the layer returns several maps.
        call: number of the call, from 1, if the layer runs several times.
        order: rank of the layer in the order in which the recorded layers ran, from 1.
        calls: number of calls of the layer so far.
        leaves: leaves of the output's tree; those in `chosen` are leaves or nodes of the autograd graph.
        chosen: indices of the `leaves` from which maps are made.
        spec: structure of the output's tree.
        layout: how positions and channels lie in the chosen tensors.
        versions: versions of the chosen tensors right after the call, to detect later in-place operations.
        gradients: gradients of the first chosen tensor, one for each target, in the layer's own layout.
        arguments: copies of the positional and keyword arguments of the call, if they are kept.
        rearrangement: origin of the values of a custom layout, set by `capture.rerun.native`.
    """

    name: str
    module: nn.Module
    level: int | None = None
    call: int | None = None
    order: int = 0
    calls: int = 0
    leaves: list[Any] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    spec: TreeSpec | None = None
    layout: Layout | None = None
    versions: list[int] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    rearrangement: Any = None

    @property
    def captured(self) -> list[Tensor]:
        """The tensors from which maps are made, and with respect to which gradients are taken."""
        return [self.leaves[i] for i in self.chosen]

    def maps(self, tensors: list[Tensor]) -> Tensor:
        """Rearrange the captured tensors, or their gradients, to `(n, k, *s)`."""
        assert self.layout is not None
        assert self.spec is not None
        if self.level is not None or not isinstance(self.layout, Custom):
            return self.layout.to_maps(tensors[0])
        leaves = list(self.leaves)
        for i, tensor in zip(self.chosen, tensors, strict=True):
            leaves[i] = tensor
        return self.layout.to_maps(tree_unflatten(leaves, self.spec))


class Recorder:
    """Observes layers during forward passes of one thread."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        n: int,
        size: tuple[int, ...],
        reshape: Reshape | None,
        graph: bool,
        evidence: Evidence | None = None,
        marks_output: bool = False,
    ) -> None:
        self.evidence = evidence
        self.marks_output = marks_output
        self.outputs: list[Tensor] = []  # outputs of the model, where the target begins; empty if not needed
        self.in_doubt = False
        self.model, self.n, self.size, self.reshape, self.graph = model, n, size, reshape, graph
        self.records = {name: self._record(name, module) for name, module in layers.items()}
        self.recomputing = False

    def _record(self, name: str, module: nn.Module) -> LayerRecord:
        parts = split_name(self.model, name)
        return LayerRecord(name, module, parts.level, parts.call)

    @contextmanager
    def attached(self, keep_arguments: bool = False) -> Iterator[None]:
        """Hold the hooks for the duration of the block."""
        with holding_hooks(every_thread=True) as attach:  # autograd recomputes checkpoints in its own threads
            for record in self.records.values():
                if record.name in NOT_MODULES:
                    continue
                attach.after(record.module, self._forward_hook(record, attach))
                if keep_arguments:
                    attach.before(record.module, self._argument_hook(record, attach), with_kwargs=True)
            if self.marks_output:
                attach.after(self.model, self._output_hook(attach))
            yield

    def observe_input(self, inputs: Inputs) -> Inputs:
        """Return the inputs for the model, and record the images if they are a target layer."""
        images = inputs.images
        record = self.records.get(INPUT)
        if record is not None:
            record.calls, record.chosen, record.layout = 1, [0], ChannelsFirst()
            record.leaves, images = self._cut(record, images, [0])
            record.versions = [version(leaf) for leaf in record.captured]
        attention = self.records.get(ATTENTION)
        if attention is not None:  # methods that explain the attention get the images as activations
            attention.calls, attention.chosen, attention.layout = 1, [0], ChannelsFirst()
            attention.leaves, attention.spec = tree_flatten(inputs.images)
            attention.versions = [version(inputs.images)]
        return inputs.with_images(images)

    def _argument_hook(self, record: LayerRecord, attach: Hooks) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            is_meant = record.calls + 1 == (record.call or 1)
            if attach.in_own_thread and record.arguments is None and is_meant:
                # The layer may change its input in place, so the input is copied.
                leaves, spec = tree_flatten((args, kwargs))
                copies = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                record.arguments = tree_unflatten(copies, spec)

        return hook

    def _output_hook(self, attach: Hooks) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if attach.in_own_thread and not self.recomputing:
                self.outputs = [tensor for tensor in tensors_of(output) if tensor.requires_grad]

        return hook

    def _forward_hook(self, record: LayerRecord, attach: Hooks) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self.recomputing:
                # Gradient checkpointing recomputes the layer: cut the graph in the same way, but record nothing.
                again = torch.is_grad_enabled() and (record.call is None or _is_same_call(record, output))
                return self._cut(record, output, record.chosen)[1] if again else None
            if not attach.in_own_thread:
                return None
            record.calls += 1
            if record.calls != (record.call or 1):
                return None
            record.order = 1 + max(other.order for other in self.records.values())
            chosen = self._choose(record, output)
            leaves, passed_on = self._cut(record, output, chosen)
            record.leaves, record.chosen = leaves, chosen
            record.versions = [version(leaf) for leaf in record.captured]
            return passed_on

        return hook

    def _choose(self, record: LayerRecord, output: Any) -> list[int]:
        """Return the indices of the output's leaves that hold the maps, and settle the layout."""
        leaves, _ = tree_flatten(output)
        recurrent = recurrent_layout(record.module, leaves, self.n, self.size)
        if recurrent is not None and self.reshape is None and record.level is None:
            record.layout = recurrent
            return [0]
        batched = [
            i
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0 and leaf.shape[0] == self.n
        ]
        if self.reshape is not None:
            # A custom reshape gets the output unchecked, because samples may be on any axis.
            record.layout = Custom(self.reshape)
            floating = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            if floating and record.level is None:
                return floating
            batched = batched or floating
        maps = [i for i in batched if leaves[i].ndim >= 3]
        chosen = maps if record.level is None else maps[record.level : record.level + 1]
        if len(chosen) == 1:
            if record.layout is None:
                record.layout = self._settle(record, leaves[chosen[0]].shape)
            return chosen
        if isinstance(output, Tensor) and batched:
            self._settle(record, output.shape)  # this raises an error, because the output has no positions
        found = [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves]
        path = split_name(self.model, record.name).path + f"#{record.call}" * (record.call is not None)
        levels = f"Name its maps one by one to fuse them: {[f'{path}:{i}' for i in range(len(maps))]}" if maps else ""
        raise CaptureError(
            f"layer {record.name!r} returned a {type(output).__name__} of {found or None} for {self.n} images; "
            f"expected one floating-point tensor ({self.n}, k, *positions). {levels or 'Choose another layer'}, or "
            "pass "
            "reshape=, a callable from the layer's output to such a tensor"
        )

    def _settle(self, record: LayerRecord, shape: tuple[int, ...]) -> Layout:
        try:
            return settle_layout(shape, self.size, self.model, record.name, record.module, self.n, self.evidence)
        except InDoubtError:  # continue the pass, because the model might catch an exception raised inside it
            self.in_doubt = True
            return ChannelsFirst()

    def _cut(self, record: LayerRecord, output: Any, chosen: list[int]) -> tuple[list[Any], Any]:
        """Start the graph at the layer's output, and pass on a copy that in-place operations may change."""
        leaves, record.spec = tree_flatten(output)
        passed_on = list(leaves)
        for i in chosen:
            tensor = leaves[i]
            if self.graph and not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            with torch.set_grad_enabled(self.graph):  # even where the model runs a frozen part under no_grad
                leaves[i], passed_on[i] = tensor, tensor.clone()
        return leaves, tree_unflatten(passed_on, record.spec)

    def check(self) -> None:
        """Raise CaptureError for a layer that did not run or ran several times, or whose output was overwritten.

        Raises:
            ShapeError: `reshape` returned no floating-point maps with one row for each image.
            InDoubtError: a layout depends on evidence that has not been gathered yet.
        """
        for record in self.records.values():
            if record.calls == 0:
                raise CaptureError(
                    f"layer {record.name!r} did not run in the forward pass; choose a layer that the model calls"
                )
            if record.calls > 1 and record.call is None:
                path = split_name(self.model, record.name).path
                raise CaptureError(
                    f"layer {record.name!r} ran {record.calls} times in one forward pass, so its "
                    f"activations are ambiguous; name the call: '{path}#1' is the first, "
                    f"'{path}#{record.calls}' the last"
                )
            if record.calls < (record.call or 1):
                raise CaptureError(
                    f"layer {record.name!r} is call {record.call} of a module that ran {record.calls} time(s) in this "
                    "forward pass; calls are counted from 1"
                )
            if [version(leaf) for leaf in record.captured] != record.versions:
                raise CaptureError(
                    f"the output of layer {record.name!r} was overwritten by an in-place operation on a tensor "
                    "that shares its memory; choose the module before it"
                )
            if isinstance(record.layout, Custom):
                self._check_reshaped(record.name, record.maps([leaf.detach() for leaf in record.captured]))

        if self.in_doubt:
            raise InDoubtError

    def _check_reshaped(self, layer: str, maps: Tensor) -> None:
        if maps.shape[0] != self.n or not maps.is_floating_point():
            raise ShapeError(
                f"reshape returned {tuple(maps.shape)} of {maps.dtype} for layer {layer!r} and {self.n} images; "
                f"expected floating-point maps ({self.n}, k, *positions) with 1, 2 or 3 position axes"
            )


def _is_same_call(record: LayerRecord, output: Any) -> bool:
    """Whether a recomputed call has the output of the recorded call, because other calls are recomputed too."""
    leaves, _ = tree_flatten(output)
    again = [leaves[i] for i in record.chosen if i < len(leaves)]
    return len(again) == len(record.captured) and all(map(torch.equal, again, record.captured))
