"""Compute activations and gradients of a layer for changed images, such as noisy images or steps of a path."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.capture.gradients.backward import layer_gradients
from gradcam_kit.capture.model.compiled import parts_compiled
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.capture.model.trees import move_tree
from gradcam_kit.capture.provenance.evidence import recall
from gradcam_kit.capture.recording import LayerRecord, Recorder
from gradcam_kit.capture.rerun.rescore import Rescorer
from gradcam_kit.types import GradientRule, Reshape


@dataclass(frozen=True)
class Prober:
    """The function `probe`, which runs changed images forward and backward, each scored by its own sample's target."""

    rescorer: Rescorer
    record: LayerRecord
    reshape: Reshape | None
    rule: GradientRule = "exact"

    def __call__(
        self, rows: Float[Tensor, "m c *t"], index: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m k *s"], Float[Tensor, "m *tks"]]:
        """Return activations and gradients of the layer for changed images, run in chunks of `batch_size`."""
        images, model = self.rescorer.inputs.images, self.rescorer.run.model

        def work(chunk: slice) -> tuple[Tensor, Tensor]:
            part = rows[chunk].to(images.dtype)
            if not self.rescorer.state.is_bag:
                return explain(part, lambda: self.rescorer.score_pass(part, index[chunk]))
            found = []
            for row, whose in zip(part, index[chunk], strict=True):  # each row is a separate bag
                bag = self.rescorer.bag_with(row, whose)
                found.append([own[whose] for own in explain(bag, partial(self.rescorer.bag_pass, bag))])
            activations, gradients = zip(*found, strict=True)
            return torch.stack(activations), torch.stack(gradients)

        def explain(part: Tensor, scored: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
            layers = {self.record.name: self.record.module}
            evidence = recall(model, self.rescorer.inputs)
            size, balances = tuple(part.shape[2:]), self.rule == "balanced"
            recorder = Recorder(
                model, layers, len(part), size, self.reshape, graph=True, evidence=evidence, marks_output=balances
            )
            with recorder.attached(), torch.enable_grad():
                scores = scored()
                recorder.check()
                found = layer_gradients(recorder, [self.record.name], scores, rule=self.rule)[self.record.name]
            record = recorder.records[self.record.name]
            here: tuple[Tensor, Tensor] = move_tree(
                (record.maps([tensor.detach() for tensor in record.captured]), found), images.device
            )
            return here

        eager = nullcontext() if self.rule == "balanced" else parts_compiled(model, [self.record.name])
        with untouched(model, images.device), eager:
            with torch.no_grad():
                self.rescorer.check()
            activations, gradients = zip(
                *self.rescorer.in_chunks(len(rows), self.rescorer.at_once(rows), work), strict=True
            )
        widened = torch.promote_types(images.dtype, torch.float32)
        return torch.cat(activations).to(widened), torch.cat(gradients).to(widened)
