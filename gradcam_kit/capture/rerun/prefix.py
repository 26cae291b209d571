"""The part of a model before a layer: the recorded outputs of its outermost modules in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.model.layers import split_name
from gradcam_kit.capture.model.state import version


@dataclass
class Prefix:
    """Outputs of the outermost modules that finished before a layer, in the order in which they ran."""

    calls: list[tuple[nn.Module, Any]]
    versions: list[int]
    source: tuple[int, int] | None
    """The call that computed the layer's input, and the index of the tensor in its output; None if no module did."""

    @classmethod
    def of(cls, calls: list[tuple[nn.Module, Any]], arguments: Any) -> Prefix:
        """Return the prefix of a layer from the calls that finished before it, and from its arguments."""
        inputs = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)][:1]
        places = [
            (i, j)
            for i, (_, output) in enumerate(calls)
            for j, leaf in enumerate(tree_leaves(output))
            if any(leaf is tensor for tensor in inputs)
        ]
        detached = [(module, tree_map(_detach, output)) for module, output in calls]
        return cls(detached, [version(leaf) for leaf in _tensors(detached)], places[-1] if places else None)

    @property
    def residual(self) -> Tensor | None:
        """The input of the layer, or None if no module computed it."""
        if self.source is None:
            return None
        call, leaf = self.source
        tensor: Tensor = tree_leaves(self.calls[call][1])[leaf]
        return tensor

    @property
    def is_intact(self) -> bool:
        """Whether no later in-place operation changed the kept outputs."""
        return [version(leaf) for leaf in _tensors(self.calls)] == self.versions


@dataclass
class PrefixRecorder:
    """Records the outputs of all modules during the forward pass, until every target layer has run."""

    model: nn.Module
    layers: Mapping[str, nn.Module]
    calls: dict[str, int] = field(default_factory=dict)
    prefixes: dict[str, Prefix] = field(default_factory=dict)
    frames: list[list[tuple[nn.Module, Any]]] = field(default_factory=lambda: [[]])

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the hooks for the duration of the block."""
        try:
            with holding_hooks() as attach:
                for module in self.model.modules():
                    attach.before(module, self._enter)
                    attach.after(module, self._leave)
                yield
        finally:
            self.frames.clear()

    @property
    def _open(self) -> bool:
        return len(self.prefixes) < len(self.layers)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._open:
            self.frames.append([])

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._open:
            return
        self.frames.pop()
        for name, layer in self.layers.items():
            if layer is not module:
                continue
            self.calls[name] = self.calls.get(name, 0) + 1
            if self.calls[name] == (split_name(self.model, name).call or 1):
                self.prefixes[name] = Prefix.of([call for frame in self.frames for call in frame], args)
        self.frames[-1].append((module, output))


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _tensors(calls: list[tuple[nn.Module, Any]]) -> Iterator[Tensor]:
    return (leaf for _, output in calls for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
