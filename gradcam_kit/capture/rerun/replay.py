"""Run only the part of a model after a layer, without tracing it.

While the model runs once, the outputs of the outermost modules that finish before the layer are kept. In a replay the
model's own Python code runs again, but those modules return their kept outputs instead of computing them, and the layer
returns the changed activations. So control flow, and skip connections from before the layer, need no analysis.
Functions that the model calls between these modules are computed again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gradcam_kit.capture.attaching import holding_hooks
from gradcam_kit.capture.deferred_checks import Checks
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.capture.model.trees import move_tree
from gradcam_kit.capture.recording import LayerRecord
from gradcam_kit.capture.rerun.lazy_rows import LazyRows
from gradcam_kit.capture.rerun.native import native_rows
from gradcam_kit.capture.rerun.prefix import Prefix
from gradcam_kit.capture.rerun.rescore import Rescorer, same_scores
from gradcam_kit.errors import CaptureError, interruption, is_out_of_memory, is_same_failure
from gradcam_kit.functional import at_least_float32

_log = logging.getLogger("gradcam_kit")


@dataclass
class Replayer:
    """The function `replay`, which computes scores as if the layer had produced the given activations.

    The first call runs the part after the layer alone on the recorded activations, and compares its scores with those
    of the pass. If they differ, or this part cannot run alone, the whole model runs with the layer's output replaced.
    On a GPU, `checks` may use the result of an earlier comparison and verify it later.
    """

    rescorer: Rescorer
    record: LayerRecord
    prefix: Prefix | None
    scores: Tensor | None
    checks: Checks
    isolated: bool | None = None

    def __call__(
        self,
        rows: Float[Tensor, "m k *s"],
        index: Int[Tensor, " m"],
        residual: Float[Tensor, "m k *s"] | None = None,
    ) -> Float[Tensor, "m *targets"]:
        """Score the rows, at most `batch_size` in one pass.

        Args:
            rows: changed activations, in place of the layer's output.
            index: for each row, the sample whose target scores it.
            residual: replacement for the layer's input wherever else this input is used, such as on a residual branch.

        Raises:
            CaptureError: `residual` is given, but no module computed the layer's input, or the layer cannot be
                isolated.
        """
        images = self.rescorer.inputs.images
        with untouched(self.rescorer.run.model, images.device), torch.no_grad():
            if self.isolated is None:
                self.isolated = self._can_isolate()
            if residual is not None and not (self.isolated and self.prefix and self.prefix.source):
                raise CaptureError(
                    f"the input of layer {self.record.name!r} cannot be replaced on its other branches; choose the "
                    "input normalization of a transformer block, whose input is the output of the block before it"
                )
            if not self.isolated:
                self.rescorer.check()
            scores = self.rescorer.in_chunks(
                len(rows),
                self.rescorer.batch_size,  # not fewer on a CPU: the part after a layer mostly reads weights
                lambda chunk: self._score(rows[chunk], index[chunk], None if residual is None else residual[chunk]),
            )
        return at_least_float32(torch.cat(scores)) if scores else images.new_zeros(0)

    def with_graph(self, rows: Tensor) -> Float[Tensor, "n *targets"]:
        """Score one row per sample, in the layer's own layout, with a graph from the rows to the scores."""
        images = self.rescorer.inputs.images
        with untouched(self.rescorer.run.model, images.device):
            if self.isolated is None:
                with torch.no_grad():
                    self.isolated = self._can_isolate()
            with torch.enable_grad():
                return self._score(rows, torch.arange(len(images), device=images.device))

    def residual(self) -> Float[Tensor, "n k *s"] | None:
        """Return the layer's input, laid out like its output; None if no module computed it or its shape differs."""
        source = self.prefix.residual if self.prefix else None
        if source is None or len(self.record.captured) > 1 or source.shape != self.record.captured[0].shape:
            return None
        found: Tensor = move_tree(at_least_float32(self.record.maps([source])), self.rescorer.inputs.images.device)
        return found

    def _score(self, rows: Tensor, index: Tensor, residual: Tensor | None = None) -> Tensor:
        record = self.record
        if self.rescorer.state.is_bag:
            return torch.cat([self._score_bag(row, whose) for row, whose in zip(rows, index, strict=True)])
        native = native_rows(record, rows, index, self.rescorer.inputs.n)
        if self.isolated:
            with self._skipped(native, index, residual):
                return self.rescorer.score_pass(LazyRows(self.rescorer.inputs.images, index), index)
        with self._replaced(native):
            return self.rescorer.score_pass(self.rescorer.inputs.images[index], index)

    def _score_bag(self, row: Tensor, whose: Tensor) -> Tensor:
        """Score the whole bag with the activations of one image replaced."""
        n = self.rescorer.inputs.n
        maps = self.record.maps([own.detach() for own in self.record.captured])
        maps = maps.index_copy(0, whose.view(1).to(maps.device), row[None].to(maps))
        native = native_rows(self.record, maps, torch.arange(n, device=row.device), n)
        with self._replaced(native):
            return self.rescorer.bag_pass(self.rescorer.inputs.images)

    @contextmanager
    def _replaced(self, native: tuple[int, Tensor]) -> Iterator[None]:
        """Let the layer return other activations in the selected call."""
        calls = count(1)

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            return self._output(native, output) if next(calls) == (self.record.call or 1) else None

        with holding_hooks() as attach:
            attach.after(self.record.module, replace)
            yield

    def _can_isolate(self) -> bool:
        """Whether the part after the layer, run alone on the layer's own activations, gives the scores of the pass."""
        if self.prefix is None or self.scores is None or self.rescorer.state.is_bag:
            return False
        if not self.prefix.is_intact:
            _log.debug("layer %r cannot be isolated: the output of an earlier module was overwritten", self.record.name)
            return False
        n, most = len(self.scores), self.rescorer.batch_size
        # Avoid n rows if possible: kept outputs may hold lists, objects or sizes for n samples, which are not indexed.
        # They would happen to fit n rows, and hide that the part cannot run alone.
        rows = n + 1 if n < most else min(max(n - 1, 1), most)
        index = (torch.arange(rows, device=self.scores.device) + 1) % n  # and use a different order of the rows
        record, self.isolated = self.record, True
        replayed = self._attempt(index)
        if isinstance(replayed, Exception):
            again = self._attempt(index)
            if not isinstance(again, Exception) or not is_same_failure(replayed, again):
                raise replayed  # the second run did not repeat the error, so isolation is not its cause
            _log.debug("layer %r cannot be isolated: %s", record.name, again)
            return False
        expected = self.scores[index]
        same = same_scores(at_least_float32(replayed), expected, record.captured[0].dtype)
        is_same = self.checks.cached_bool((record.name, "isolated"), same)
        if not is_same:
            _log.debug("layer %r cannot be isolated: the part after the layer gives different scores", record.name)
        return is_same

    def _attempt(self, index: Tensor) -> Tensor | Exception:
        """Score the recorded activations with the part after the layer alone; return the error if this part fails."""
        try:
            maps = self.record.maps([own.detach() for own in self.record.captured])
            return self._score(maps[index.to(maps.device)], index)
        except Exception as error:  # code after the layer may fail in any way in such a call
            if is_out_of_memory(error) or interruption(error) is not None:
                raise
            return error

    def _output(self, native: tuple[int, Tensor], output: Any) -> Any:
        leaves, spec = tree_flatten(output)
        leaves[native[0]] = native[1]
        return tree_unflatten(leaves, spec)

    @contextmanager
    def _skipped(self, native: tuple[int, Tensor], index: Tensor, residual: Tensor | None) -> Iterator[None]:
        """Let the modules before the layer return their recorded outputs, and the layer the changed activations."""
        assert self.prefix is not None
        assert self.record.spec is not None
        n = self.rescorer.inputs.n

        def rows(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == n:
                return LazyRows(leaf, index)
            return leaf

        pending: dict[nn.Module, deque[Any]] = {}
        for call, (module, output) in enumerate(self.prefix.calls):
            leaves, spec = tree_flatten(tree_map(rows, output))
            if residual is not None and self.prefix.source is not None and call == self.prefix.source[0]:
                assert self.record.layout is not None
                place = self.prefix.source[1]
                own = leaves[place]
                leaves[place] = self.record.layout.to_native(residual.to(own.device, own.dtype), own)
            pending.setdefault(module, deque()).append(tree_unflatten(leaves, spec))
        layer_output = tree_unflatten([rows(leaf) for leaf in self.record.leaves], self.record.spec)
        pending.setdefault(self.record.module, deque()).append(self._output(native, layer_output))
        original = {module: module.__dict__.get("forward") for module in pending}
        try:
            for module, outputs in pending.items():
                module.__dict__["forward"] = _handing_out(outputs, module.forward)
            yield
        finally:
            for module, forward in original.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = forward


def _handing_out(outputs: deque[Any], forward: Any) -> Any:
    thread = threading.get_ident()

    def replayed(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and outputs:
            return outputs.popleft()
        return forward(*args, **kwargs)

    return replayed
