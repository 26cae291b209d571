"""Run a model once, and gather the evidence for several methods, layers and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from gradcam_kit.capture.attention.recorder import AttentionRecorder
from gradcam_kit.capture.deferred_checks import Checks, check_images
from gradcam_kit.capture.gradients.backward import guided_gradients, layer_curvature, layer_gradients
from gradcam_kit.capture.gradients.biases import BiasRecorder
from gradcam_kit.capture.model.compiled import parts_compiled
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.capture.model.trees import map_output, move_tree
from gradcam_kit.capture.provenance.evidence import gather, recall
from gradcam_kit.capture.provenance.settling import InDoubtError
from gradcam_kit.capture.recording import INPUT, NOT_MODULES, Recorder
from gradcam_kit.capture.rerun.prefix import PrefixRecorder
from gradcam_kit.capture.rerun.rescore import Rescorer, RowState
from gradcam_kit.capture.results import Capture
from gradcam_kit.errors import GradCamKitError, raise_interruption
from gradcam_kit.functional import at_least_float32
from gradcam_kit.targets.classes import ClassTarget, score, settle
from gradcam_kit.targets.outputs import predicted_classes, read_logits
from gradcam_kit.targets.scores import told_kind
from gradcam_kit.types import Evidence, GradientRule, Reshape, Target

_WITHOUT_SCORES = Evidence.ATTENTION | Evidence.HEAD | Evidence.WEIGHT_GRADIENTS
"""Evidence that is available even if the model's output cannot be read as scores."""

_OF_OPERATIONS = Evidence.CURVATURE | Evidence.GUIDED
"""Evidence that needs the graph of single operations, which compiled code does not have."""

_OF_ATTENTION = Evidence.ATTENTION_GRADIENTS | Evidence.PROJECTIONS
_RULES: tuple[GradientRule, ...] = ("exact", "balanced")


@dataclass(frozen=True)
class Request:
    """The evidence that a pass has to deliver.

    Attributes:
        layers: the target layers by name.
        needs_at: the evidence that each layer has to deliver.
        targets: the explained target; None = the predicted classes.
        target_type: makes a target of predicted classes.
        reshape: function from a layer's output to maps; None = the layout is inferred.
        settled: whether the targets were settled by an earlier pass.
        keep_modes: whether modules in train mode stay in train mode.
        rules_at: gradient rules of each layer. A layer that is not listed has the rule "exact".
    """

    layers: Mapping[str, nn.Module]
    needs_at: Mapping[str, Evidence]
    targets: Target | None
    target_type: Callable[[Any], ClassTarget]
    reshape: Reshape | None = None
    settled: bool = False
    keep_modes: bool = False
    rules_at: Mapping[str, Set[GradientRule]] = field(default_factory=dict)

    @property
    def needs(self) -> Evidence:
        """The evidence that at least one layer has to deliver."""
        return reduce(or_, self.needs_at.values(), Evidence.NONE)

    def layers_with(self, evidence: Evidence, rule: GradientRule | None = None) -> list[str]:
        """Return the layers that have to deliver this evidence, optionally only those with one gradient rule."""
        return [
            name
            for name, needs in self.needs_at.items()
            if needs & evidence and (rule is None or rule in self.rules_at.get(name, {"exact"}))
        ]

    def rules_of(self, evidence: Evidence) -> list[GradientRule]:
        """Return the gradient rules by which this evidence has to be delivered, exact first."""
        return [rule for rule in _RULES if self.layers_with(evidence, rule)]


@contextmanager
def capture(model: nn.Module, inputs: Inputs, request: Request) -> Iterator[Capture]:
    """Run the model once, forward and (if needed) backward to the target layers.

    The part before the first target layer runs without a graph, because all parameters are frozen and the graph starts
    at the layer's output; the backward pass ends there. Inside the block the model stays ready for `rescore` and
    `replay`; afterwards it is restored, even after an error.

    Raises:
        CaptureError: a layer did not run or ran more than once, or the score does not depend on a layer.
        NonFiniteError: images, activations or gradients have NaN or infinite values.
        ShapeError: a layer's output does not have positions of the images.
    """
    with untouched(model, inputs.images.device, request.keep_modes), ExitStack() as stack:
        try:
            captured = stack.enter_context(_pass(model, inputs, request))
        except InDoubtError:  # at most once per model and input shapes
            gather(model, inputs)
            captured = stack.enter_context(_pass(model, inputs, request))
        yield captured


@contextmanager
def _pass(model: nn.Module, inputs: Inputs, request: Request) -> Iterator[Capture]:
    """Run a model that is held `untouched`; whatever the results refer to stays alive during the block."""
    graph = bool(request.needs & Evidence.DERIVATIVES)
    run = Runner.of(model, inputs.images.device)
    checks = Checks(model)
    check_images(inputs.images, checks)
    layers = {**request.layers, **({INPUT: model} if Evidence.GUIDED in request.needs else {})}
    balances = "balanced" in request.rules_of(Evidence.RULED)
    evidence = recall(model, inputs)
    recorder = Recorder(model, layers, inputs.n, inputs.size, request.reshape, graph, evidence, marks_output=balances)
    biases = BiasRecorder(model) if Evidence.BIASES in request.needs else None
    real = {name: module for name, module in layers.items() if name not in NOT_MODULES}
    attention = None
    if Evidence.ATTENTION in request.needs:
        attention = AttentionRecorder(model, inputs, request.needs, recall(model, inputs))
    prefix = PrefixRecorder(model, real) if Evidence.REPLAY in request.needs else None
    with ExitStack() as stack:
        stack.enter_context(recorder.attached(keep_arguments=Evidence.WEIGHT_GRADIENTS in request.needs))
        for further in (biases, prefix, attention):
            if further:
                stack.enter_context(further.attached())
        if Evidence.CURVATURE in request.needs:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention has no second derivative
        if not (biases or prefix or attention or balances or request.needs & _OF_OPERATIONS):
            stack.enter_context(parts_compiled(model, real))
        stack.enter_context(torch.set_grad_enabled(graph))
        output = run(recorder.observe_input(inputs))
        recorder.check()
        if biases and recall(model, inputs) is None and biases.is_in_doubt(inputs.size):
            raise InDoubtError
        if attention:
            recorder.records.update(attention.records())
        optional = not request.needs & ~_WITHOUT_SCORES
        target, classes, scores = _score(request, output, inputs, optional)
        derivatives: dict[str, Any] = {}
        block_gradients: dict[GradientRule, tuple[Tensor, ...]] = {}
        if graph and scores is not None:
            derivatives = _derive(request, recorder, biases, attention, scores, inputs)
            if attention and target is not None and Evidence.BLOCK_GRADIENTS in request.needs:
                rescorer = Rescorer(run, inputs, target, _detach(output), inputs.n)
                for rule in request.rules_of(Evidence.BLOCK_GRADIENTS):
                    block_gradients[rule] = attention.block_gradients(rescorer, scores, checks, rule)
    with run.arithmetic():
        is_bag = scores is not None and len(scores) == 1 < inputs.n
        captured = Capture(
            run=run,
            inputs=inputs,
            target=target,
            scores=None
            if scores is None
            else _for_each(move_tree(at_least_float32(scores.detach()), inputs.images.device), inputs.n),
            classes=None if classes is None else _for_each(move_tree(classes, inputs.images.device), inputs.n),
            rows=RowState(is_bag=is_bag),
            output=_detach(output),
            told=None if classes is None else told_kind(model, read_logits(output)),
            records=recorder.records,
            prefixes=prefix.prefixes if prefix else {},
            reshape=request.reshape,
            checks=checks,
            attention=move_tree(
                attention.evidence(
                    request.rules_of(Evidence.ATTENTION), derivatives.get("gradients", {}), block_gradients, checks
                )
                if attention
                else {},
                inputs.images.device,
            ),
            **derivatives,
        )
        captured.check_layers()
        if inputs.images.device.type == "cpu":
            checks.raise_first()  # does not synchronize on a CPU, and keeps NaN out of the methods
        # The graph is no longer needed; a reference here would keep it alive while the methods run.
        del output, scores, derivatives
        try:
            yield captured
        except Exception as error:
            raise_interruption(error)
            checks.raise_first()  # raise an error for NaN first, because NaN may be the cause
            raise
        checks.raise_first()


def _derive(
    request: Request,
    recorder: Recorder,
    biases: BiasRecorder | None,
    attention: AttentionRecorder | None,
    scores: Tensor,
    inputs: Inputs,
) -> dict[str, Any]:
    """Run all backward passes. The guided pass comes last, because its rule changes the nodes of the graph."""
    found: dict[str, Any] = {"gradients": {}, "bias_gradients": {}}
    rules = request.rules_of(Evidence.RULED)
    for rule in rules:
        names = request.layers_with(Evidence.GRADIENTS, rule)
        if attention and request.layers_with(_OF_ATTENTION, rule):
            names = [*names, *attention.differentiated]
        more = bool(request.needs & (Evidence.DERIVATIVES ^ Evidence.GRADIENTS)) or rule != rules[-1]
        own = layer_gradients(recorder, names, scores, keep=more, rule=rule) if names else {}
        found["gradients"].update({(name, rule): gradient for name, gradient in own.items()})
    if names := request.layers_with(Evidence.CURVATURE):
        found["curvature"] = layer_curvature(recorder, names, scores)
    if biases:
        for rule in request.rules_of(Evidence.BIASES):
            layers = [recorder.records[name] for name in request.layers_with(Evidence.BIASES, rule)]
            captured = [tensor for record in layers for tensor in record.captured]
            balanced_for = (captured, recorder.outputs) if rule == "balanced" else None
            found["bias_gradients"][rule] = biases.products(scores, inputs, balanced_for)
    if Evidence.GUIDED in request.needs:
        found["guided_gradients"] = guided_gradients(scores, recorder.records[INPUT].captured[0])
    here: dict[str, Any] = move_tree(tree_map(at_least_float32, found), inputs.images.device)
    return here


def _score(
    request: Request, output: Any, inputs: Inputs, optional: bool
) -> tuple[Target | None, Tensor | None, Tensor | None]:
    """Return the target, its class indices (if any) and the scores; all are None if optional scores are unreadable."""
    target = request.targets
    try:
        if target is None:
            target = request.target_type(predicted_classes(output))
        if not request.settled:
            with torch.no_grad():
                target = settle(target, output)
        scores = score(target, output, inputs.n)
        classes = None
        if isinstance(target, ClassTarget):
            with torch.no_grad():
                classes = target.indices(read_logits(output))
    except GradCamKitError:
        if optional and request.targets is None:
            return None, None, None
        raise
    return target, classes, scores


def _for_each(values: Tensor, n: int) -> Tensor:
    """Repeat the score or class of a bag for each of its n images."""
    return values.expand(n, *values.shape[1:]) if len(values) == 1 < n else values


def _detach(output: Any) -> Any:
    # Make the tensors contiguous, as they would be without the channels-last memory format of the images.
    return map_output(lambda leaf: leaf.detach().contiguous(), output)
