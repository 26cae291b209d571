"""The kind of score of a run: requested, or detected from the first pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from gradcam_kit.capture import output_with_graph, read_inputs
from gradcam_kit.errors import raise_interruption
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.reader import Decoded
from gradcam_kit.targets.outputs import read_logits
from gradcam_kit.targets.scores import WORDS, are_shares, evident_kind, last_operation


def with_scores(explainer: Explainer, pictures: Iterable[Decoded]) -> tuple[Explainer, list[str]]:
    """Return the explainer with its kind of scores, as requested or detected from outputs, and notes for the user.

    More pictures are tried only while all outputs are between 0 and 1, because for few pictures this may be chance.
    """
    if explainer.scores is not None:
        return explainer, [f"the score is {WORDS[explainer.scores]}, as requested"]
    outputs: list[Tensor] = []
    for one in pictures:
        try:
            inputs = read_inputs(explainer.images([one]), {})
            with explainer.precision():
                output = output_with_graph(explainer.model, inputs)
            logits = read_logits(output)
            outputs.append(logits.detach() if outputs else logits)  # a single graph suffices
            kind, why = evident_kind(explainer.model, outputs)
        except Exception as error:  # a model that fails here is refused later, when it explains
            raise_interruption(error)
            break
        if last_operation(outputs[0]) in ("softmax", "sigmoid", "logsoftmax") or not _may_be_probabilities(outputs):
            break
    if not outputs:
        return explainer, []
    notes = [f"the score is {WORDS[kind]}: {why} (see --scores)"]
    if kind == "raw" and _may_be_probabilities(outputs):
        is_shared = outputs[0].shape[1] > 1 and all(bool(are_shares(one.detach())) for one in outputs)
        which, last = ("from 0 to 1, and their sum is 1", "softmax") if is_shared else ("from 0 to 1", "sigmoid")
        notes.append(
            f"the outputs of {explainer.loaded.spec} look like probabilities ({which}); methods expect logits: leave "
            f"out the last {last}"
        )
    return replace(explainer, scores=kind), notes


def _may_be_probabilities(outputs: Iterable[Tensor]) -> bool:
    return all(bool(((one.detach() >= 0) & (one.detach() <= 1)).all()) for one in outputs)
