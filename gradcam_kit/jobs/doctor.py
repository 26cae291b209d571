"""Examine a model and its data: run checks in order, and report findings on the terminal, in a file and on a page."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from gradcam_kit._version import __version__
from gradcam_kit.diagnostics.checks.loss import check_loss
from gradcam_kit.diagnostics.checks.output import check_output
from gradcam_kit.diagnostics.checks.overfit import can_overfit
from gradcam_kit.diagnostics.checks.preserving import random_states
from gradcam_kit.diagnostics.checks.tasks import outputs_of
from gradcam_kit.diagnostics.checks.training import run_findings
from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.diagnostics.show.page import render_page
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.errors import GradCamKitError, exits_refused
from gradcam_kit.jobs.request import one_line
from gradcam_kit.jobs.storage.folders import folder_at
from gradcam_kit.jobs.work.diagnosis import Diagnosis, DoctorRequest
from gradcam_kit.jobs.work.examined_data import ExaminedData, count_outputs, random_images
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.loading import load_explainer, note
from gradcam_kit.jobs.work.observed import feature_maps, observed_training
from gradcam_kit.jobs.work.special_parts import special_parts

__all__ = ["Diagnosis", "DoctorRequest", "examine"]

_ALONE = 8  # maximum number of random images if there are no pictures
_DISTINCT = 128  # number of random images to train on
_OVERFIT = 16  # maximum number of images to overfit
_UNTRAINED, _UNKNOWN = "random", "its factory"


@exits_refused()
def examine(request: DoctorRequest, console: Console | None = None) -> Diagnosis:
    """Examine a model and its data, and write the findings as a page and as JSON.

    The given weights are never changed, because every training runs on a copy. Each training has a fixed seed, and
    takes at most 60 s.

    Args:
        request: what to examine.
        console: where notes are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is invalid.
    """
    done, data = Diagnosis(), None
    with random_states():
        explainer = load_explainer(request.model)
        trained = _is_trained(explainer)
        with done.timed("data"):
            if request.data is None:
                images, labels, outputs = _random_batch(explainer, min(request.batch_size, _ALONE), done)
            else:
                data = ExaminedData.read(request, explainer, trained, done)
                images, labels, outputs = data.images, data.labels, data.outputs
        for text in done.inputs:
            note(console, text)
        _examine_model(explainer, images, labels, outputs, trained, request, done)
    done.findings = worst_first(done.findings)
    section = None if data is None else data.section()
    page = render_page(
        model=explainer.loaded.spec,
        weights=explainer.loaded.weights,
        findings=done.findings,
        inputs=done.inputs,
        skipped=done.skipped,
        report=done.report,
        maps=done.maps,
        strips=done.strips,
        parts=done.parts,
        attention=done.attention,
        data=section,
        settings=_settings(request, explainer),
        seconds=done.seconds,
    )
    folder = folder_at(request.out)
    folder.write("doctor.json", done.to_json().encode())
    folder.write("doctor.html", page.encode("utf-8", "backslashreplace"))
    done.page = f"{request.out.rstrip('/')}/doctor.html"
    return done


def _examine_model(
    explainer: Explainer,
    images: Tensor,
    labels: Tensor | None,
    outputs: int,
    trained: bool | None,
    request: DoctorRequest,
    done: Diagnosis,
) -> None:
    """Examine the outputs, loss and training of the model, with arbitrary labels if the images have none."""
    model = explainer.model
    with done.timed("outputs"):
        done.findings += check_output(model, (images, labels))
    broken = any(finding.kind in ("nonfinite", "label-range") for finding in done.findings)
    if not any(finding.kind == "nonfinite" for finding in done.findings):
        with done.timed("attention and recurrent layers"):
            special = special_parts(model, images.to(explainer.device), detects=outputs < 1)
        done.parts, done.attention = special.tables, special.maps
        done.findings += special.findings
        done.skipped += special.skipped
    if broken:
        done.skipped.append(("loss and training", "outputs or labels are invalid (see above)"))
        return
    if outputs < 1:
        done.skipped.append(("loss and training", "the outputs are not class scores of shape (n, classes)"))
        return
    if labels is None:
        labels = torch.arange(len(images)) % max(2, outputs)
        text = "the images have no labels, so arbitrary labels were used, and only the structure was examined"
        done.skipped.append(("labels in loss and training", text))
    if trained is not False:
        done.skipped.append(("first value of the loss", "it is judged only for untrained weights"))
    batch = images[:_OVERFIT], labels[:_OVERFIT]
    are_shares = any(finding.kind == "softmax-twice" for finding in done.findings)
    loss = _loss_of_shares if are_shares else _loss  # the softmax in the model has already been reported
    with done.timed("loss"):
        done.findings += check_loss(model, batch, loss, trained=trained is not False)
    if any(finding.kind == "no-gradient" and finding.value is None for finding in done.findings):
        done.skipped.append(("training", "no gradient reaches the model"))
        return
    with done.timed("training"):
        size = request.batch_size
        if request.data is None:  # a verdict about units needs many different samples
            size = len(images)
            images = random_images(explainer, _DISTINCT)
            labels = torch.arange(len(images)) % max(2, outputs)
        parts = list(zip(images.split(size), labels.split(size), strict=True))
        try:
            found, done.report, done.strips = observed_training(model, parts, loss, request.steps)
            done.maps = feature_maps(model, images.to(explainer.device), done.report)
        except GradCamKitError as error:
            done.skipped.append(("layers", one_line(error)))
            found = run_findings(model, parts, loss, None, request.steps)
        if request.data is None:
            found = [_of_random_images(finding) for finding in found]
        known = {(finding.kind, finding.layer) for finding in done.findings}
        done.findings += [finding for finding in found if (finding.kind, finding.layer) not in known]
    with done.timed("overfitting one batch"):
        done.findings += can_overfit(model, batch, loss)


def _of_random_images(finding: Finding) -> Finding:
    """Turn a warning into a note, because units that are silent or alike on random images may respond to pictures."""
    if finding.level == "warn" and finding.kind in ("dead", "redundant"):
        return replace(finding, level="note", message=f"{finding.message.rstrip('.')}; seen only with random images")
    return finding


def _is_trained(explainer: Explainer) -> bool | None:
    """Whether the weights are trained; None if unknown."""
    weights = explainer.loaded.weights
    if weights == _UNTRAINED:
        return False
    if weights != _UNKNOWN:
        return True
    batches = [buffer for name, buffer in explainer.model.named_buffers() if name.endswith("num_batches_tracked")]
    return bool(torch.stack(batches).any()) or None if batches else None


def _random_batch(explainer: Explainer, n: int, done: Diagnosis) -> tuple[Tensor, Tensor | None, int]:
    done.inputs.append(f"no data was given, so only the structure of the model was examined, with {n} random images")
    done.skipped.append(("data, labels and leaks", "no --data was given"))
    images = random_images(explainer, n)
    return images, None, count_outputs(explainer, images)


def _loss(output: Any, labels: Tensor) -> Tensor:
    """Return the cross-entropy or, for a single output, the binary cross-entropy."""
    scores = outputs_of(output)
    assert scores is not None
    if scores.ndim == 1 or scores.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(scores.reshape(len(labels)), labels.to(scores.dtype))
    return functional.cross_entropy(scores, labels)


def _loss_of_shares(output: Any, labels: Tensor) -> Tensor:
    """Return the cross-entropy of outputs that are probabilities."""
    shares = outputs_of(output)
    assert shares is not None
    return functional.nll_loss(shares.clamp(min=torch.finfo(shares.dtype).tiny).log(), labels)


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {' x '.join(map(str, value)) if name in ('size', 'resize') and isinstance(value, tuple) else value}"
        for name, value in values.items()
        if value is not None
    )


def _settings(request: DoctorRequest, explainer: Explainer) -> dict[str, str]:
    loaded = explainer.loaded
    return {
        "model": f"{loaded.spec}, weights {loaded.weights}, on {explainer.device}",
        "pictures": f"prepared by {loaded.transform_source}: {_in_words(loaded.transform.describe())}",
        "data": str(request.data or "none"),
        "test": str(request.test or "none"),
        "training": f"{request.steps} steps of Adam at 1e-3 with batches of {request.batch_size}, on a copy, seed 0",
        "thresholds": ", ".join(f"{name} {value:g}" for name, value in asdict(Thresholds()).items()),
        "versions": f"gradcam_kit {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}, torch threads: {torch.get_num_threads()}",
        "folder": str(Path(request.out)),
    }
