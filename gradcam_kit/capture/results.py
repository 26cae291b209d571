"""The results of one pass, and the view of one layer that a method works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from gradcam_kit.capture.deferred_checks import Checks, check_activations, no_patch_gradient
from gradcam_kit.capture.gradients.output_graph import score_kind
from gradcam_kit.capture.head import find_head, weight_gradients
from gradcam_kit.capture.layouts import Custom, Tokens
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.trees import move_tree
from gradcam_kit.capture.recording import LayerRecord
from gradcam_kit.capture.rerun.prefix import Prefix
from gradcam_kit.capture.rerun.probe import Prober
from gradcam_kit.capture.rerun.replay import Replayer
from gradcam_kit.capture.rerun.rescore import Rescorer, RowState, by_similarity
from gradcam_kit.errors import CaptureError, NonFiniteError
from gradcam_kit.functional import at_least_float32, finite_probe
from gradcam_kit.targets.classes import EvidentProbability
from gradcam_kit.targets.scores import ScoreKind
from gradcam_kit.types import Attention, Evidence, GradientRule, Head, LayerCapture, Reshape, Target


@dataclass
class Capture:
    """The results of one pass, from which `layer` makes the view that a method works on.

    Attributes:
        run: runs the model.
        inputs: the inputs of the pass.
        target: the settled target; None if the output cannot be read as scores.
        scores: the explained scores `(n, [m])`; None without a target.
        classes: the explained class indices `(n, [m])`; None for a target without classes.
        output: the model's output without a graph.
        records: layer -> its recorded output.
        prefixes: layer -> outputs of the modules that finished before it, for `Evidence.REPLAY`.
        reshape: function from a layer's output to maps; None = the layout is inferred.
        checks: the deferred checks of the pass.
        gradients: (layer, gradient rule) -> d scores / d activations.
        curvature: layer -> second derivative of the scores, times the activations.
        bias_gradients: gradient rule -> every bias times the gradient at its module's output.
        guided_gradients: the gradient at the input by guided backpropagation.
        attention: gradient rule -> attention of all blocks.
        rows: what passes over changed images have shown.
        told: kind of the scores and its reason, if they are known without reading values.
    """

    run: Runner
    inputs: Inputs
    target: Target | None
    scores: Tensor | None
    classes: Tensor | None
    output: Any
    records: Mapping[str, LayerRecord]
    prefixes: Mapping[str, Prefix]
    reshape: Reshape | None
    checks: Checks
    gradients: Mapping[tuple[str, GradientRule], Tensor] = field(default_factory=dict)
    curvature: Mapping[str, Tensor] = field(default_factory=dict)
    bias_gradients: Mapping[GradientRule, tuple[Tensor, ...]] = field(default_factory=dict)
    guided_gradients: Tensor | None = None
    attention: Mapping[GradientRule, Attention] = field(default_factory=dict)
    rows: RowState = field(default_factory=RowState)
    told: tuple[ScoreKind, str] | None = None
    _heads: dict[str, Head | None] = field(default_factory=dict)

    @property
    def order(self) -> list[str]:
        """The names of the layers in the order in which the model ran them."""
        return sorted(self.records, key=lambda name: self.records[name].order)

    def has_tokens(self, name: str) -> bool:
        """Whether a layer's output is a sequence of tokens."""
        return isinstance(self.records[name].layout, Tokens)

    def layer(self, name: str, needs: Evidence, batch_size: int, rule: GradientRule = "exact") -> LayerCapture:
        """Return the view of one layer for a method with these needs and this gradient rule."""
        record = self.records[name]
        activations = record.maps([tensor.detach() for tensor in record.captured])
        activations = move_tree(at_least_float32(activations), self.inputs.images.device)
        target = self.target if self.target is not None else _no_scores
        rescorer = Rescorer(self.run, self.inputs, target, self.output, batch_size, self.rows)
        replayer = Replayer(rescorer, record, self.prefixes.get(name), self.scores, self.checks)
        head = self._head(name, activations) if Evidence.HEAD in needs else None
        fallback = Evidence.WEIGHT_GRADIENTS in needs and head is None
        # Attention probabilities do not depend on the rule, so those of another rule are used if this rule has none.
        attention = self.attention.get(rule) or next(iter(self.attention.values()), None)
        return LayerCapture(
            layer=name,
            activations=activations,
            gradients=self.gradients.get((name, rule)) if Evidence.GRADIENTS in needs else None,
            curvature=self.curvature.get(name) if Evidence.CURVATURE in needs else None,
            bias_gradients=self.bias_gradients.get(rule) if Evidence.BIASES in needs else None,
            guided_gradients=self.guided_gradients if Evidence.GUIDED in needs else None,
            scores=self.scores,
            rescore=rescorer,
            rescore_probability=rescorer if self.classes is None else replace(rescorer, target=self._probability),
            rescore_similarity=by_similarity(rescorer) if Evidence.DETECTIONS in needs else None,
            replay=replayer,
            residual=replayer.residual() if Evidence.REPLAY in needs else None,
            images=self.inputs.images,
            probe=Prober(rescorer, record, self.reshape, rule),
            head=head,
            weight_gradients=weight_gradients(record, activations, self.checks) if fallback else None,
            attention=attention and attention.for_needs(needs),
        )

    def check_layers(self) -> None:
        """Add the checks that activations and gradients are finite, and that gradients reach the patches."""
        for name, record in self.records.items():
            tensors = [tensor.detach() for tensor in record.captured]
            for tensor in [record.maps(tensors)] if isinstance(record.layout, Custom) else tensors:
                check_activations(name, tensor, self.checks)
            gradients = [gradient for (layer, _), gradient in self.gradients.items() if layer == name]
            if not gradients:
                continue
            gradient = gradients[-1]  # the last one comes from the same pass as `record.gradients`
            for one in gradients:
                self.checks.add(~torch.isfinite(finite_probe(one)), partial(_not_finite, name))
            if isinstance(record.layout, Tokens) and record.layout.prefix:
                others = torch.stack([(native[:, : record.layout.prefix] != 0).any() for native in record.gradients])
                missed = others.any() & ~(gradient != 0).any()
                self.checks.add(missed[None], partial(no_patch_gradient, name))

    @cached_property
    def _probability(self) -> Target:
        assert self.classes is not None
        # Do not hold `self`, which holds this target: the cycle would keep activations alive until garbage collection.
        told, find = self.told, partial(score_kind, self.run.model, self.inputs, self.output)
        classes = self.classes[:1] if self.rows.is_bag else self.classes
        return EvidentProbability(classes, cache(lambda: told[0] if told else find()))

    def _head(self, name: str, activations: Tensor) -> Head | None:
        if name not in self._heads:
            self._heads[name] = find_head(self.run, name, activations, self.output, self.target, self.checks)
        return self._heads[name]


def _not_finite(name: str, sample: int) -> NonFiniteError:
    return NonFiniteError(
        f"the gradients at layer {name!r} have NaN or infinite values for image {sample} of the batch; "
        "in half precision they may overflow: use float32 or bfloat16"
    )


def _no_scores(output: Any) -> Tensor:
    raise CaptureError("the model's output could not be read as class scores; pass targets=callable")
