"""What is wrong with a model and its data: checks in order, findings on the terminal, in a file and on a page."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from gradcam_kit._version import __version__
from gradcam_kit.diagnostics.checks.data import names_in_words, split_findings
from gradcam_kit.diagnostics.checks.duplicates import Twins, find_twins
from gradcam_kit.diagnostics.checks.loss import check_loss
from gradcam_kit.diagnostics.checks.output import check_output
from gradcam_kit.diagnostics.checks.overfit import can_overfit
from gradcam_kit.diagnostics.checks.preserving import random_states
from gradcam_kit.diagnostics.checks.scales import transform_findings
from gradcam_kit.diagnostics.checks.tasks import outputs_of
from gradcam_kit.diagnostics.checks.training import run_findings
from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.diagnostics.report import Report
from gradcam_kit.diagnostics.show.page import Channel, DataSection, FeatureMaps, Pair, render_page
from gradcam_kit.errors import GradCamKitError, InputError, OptionError
from gradcam_kit.jobs.request import ModelRequest, one_line
from gradcam_kit.jobs.storage.folders import folder_at
from gradcam_kit.jobs.work.examined import Examined, classes_of, examine_folder, list_folders, prefix_of
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.folder_findings import dim_findings, disagreements, unknown_findings
from gradcam_kit.jobs.work.loading import load_explainer, note
from gradcam_kit.jobs.work.observed import feature_maps, observed_training
from gradcam_kit.jobs.work.reader import Decoded, decode
from gradcam_kit.transforms import PictureTransform

_ALONE = 8  # random images where there are no pictures
_SIDE = 256  # of the random pictures
_OVERFIT, _PAIRS = 16, 12
_UNTRAINED, _UNKNOWN = "random", "its factory"


@dataclass(frozen=True)
class DoctorRequest:
    """What is examined.

    Attributes:
        model: which model.
        data: its training pictures: a folder with one subfolder per class, a glob, a list or a table; None = none.
        test: its test pictures likewise.
        steps: training steps on a copy of the model.
        batch_size: images in each of them.
        out: the folder for `doctor.html` and `doctor.json`.
    """

    model: ModelRequest
    data: str | None = None
    test: str | None = None
    steps: int = 20
    batch_size: int = 32
    out: str = "gradcam-doctor"

    def __post_init__(self) -> None:
        for name, value, least in (("number of steps", self.steps, 1), ("batch size", self.batch_size, 2)):
            if value < least:
                raise OptionError(f"the {name} is {value}; expected at least {least}")
        if self.test is not None and self.data is None:
            raise OptionError("--test needs --data: leaks are found by comparing both")


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        findings: the worst first.
        inputs: in words, what the model was examined with.
        skipped: what was not examined, and why.
        page: where the page is.
        seconds: how long each part took.
        report: about the layers of the copy that was trained.
        maps: feature maps of some layers.
    """

    findings: list[Finding] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    page: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    report: Report | None = None
    maps: list[FeatureMaps] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 = nothing bad, 1 = at least one bad finding."""
        return int(any(finding.level == "bad" for finding in self.findings))

    def to_json(self) -> str:
        """Return all findings as strict JSON."""
        return json.dumps({"findings": [finding.to_dict() for finding in self.findings]}, indent=1, allow_nan=False)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note how long a part takes."""
        start = time.monotonic()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - start


def examine(request: DoctorRequest, console: Console | None = None) -> Diagnosis:
    """Examine a model and its data, and write the page and the file of findings.

    The given weights are never trained: every training happens on a copy, from fixed seeds, and ends after 60 s.

    Args:
        request: what is examined.
        console: where notes are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is wrong.
    """
    done, data = Diagnosis(), None
    with random_states():
        explainer = load_explainer(request.model)
        trained = _is_trained(explainer)
        with done.timed("data"):
            if request.data is None:
                images, labels, outputs = _random_batch(explainer, min(request.batch_size, _ALONE), done)
            else:
                data = _Data.read(request, explainer, trained, done)
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
    """Examine outputs, loss, training and memory of the model; without labels random ones stand for them."""
    model = explainer.model
    with done.timed("outputs"):
        done.findings += check_output(model, (images, labels))
    if any(finding.kind in ("nonfinite", "label-range") for finding in done.findings):
        done.skipped.append(("loss and training", "outputs or labels are broken, see above"))
        return
    if outputs < 1:
        done.skipped.append(("loss and training", "the outputs are not scores of classes (n, classes)"))
        return
    if labels is None:
        labels = torch.arange(len(images)) % max(2, outputs)
        text = "random labels stood for the missing ones, so only the structure was examined"
        done.skipped.append(("labels in loss and training", text))
    if trained is not False:
        done.skipped.append(("first value of the loss", "it is judged for fresh weights only"))
    batch = images[:_OVERFIT], labels[:_OVERFIT]
    are_shares = any(finding.kind == "softmax-twice" for finding in done.findings)
    loss = _loss_of_shares if are_shares else _loss  # so that one fault is not told twice
    with done.timed("loss"):
        done.findings += check_loss(model, batch, loss, trained=trained is not False)
    if any(finding.kind == "no-gradient" and not finding.layer for finding in done.findings):
        done.skipped.append(("training", "no gradient reaches the model"))
        return
    with done.timed("training"):
        parts = list(zip(images.split(request.batch_size), labels.split(request.batch_size), strict=True))
        try:
            found, done.report = observed_training(model, parts, loss, request.steps)
            done.maps = feature_maps(model, images.to(explainer.device), done.report)
        except GradCamKitError as error:
            done.skipped.append(("layers", one_line(error)))
            found = run_findings(model, parts, loss, None, request.steps)
        known = {(finding.kind, finding.layer) for finding in done.findings}
        done.findings += [finding for finding in found if (finding.kind, finding.layer) not in known]
    with done.timed("overfitting one batch"):
        done.findings += can_overfit(model, batch, loss)


@dataclass
class _Data:
    """The pictures that were examined."""

    train: Examined
    test: Examined | None
    images: Tensor
    labels: Tensor | None
    outputs: int
    pairs: list[Pair]

    @classmethod
    def read(cls, request: DoctorRequest, explainer: Explainer, trained: bool | None, done: Diagnosis) -> _Data:
        """Read the folders, and judge what is in them."""
        assert request.data is not None
        train, test, where = list_folders(request.data, request.test, request.out)
        outputs = _outputs(explainer, _random_images(explainer, 2))
        class_of, how = classes_of(explainer, [*train, *(test or ())], max(2, outputs))
        two = request.test is not None
        classes = 2 if outputs == 1 else outputs  # one logit stands for yes and no
        options = {"class_of": class_of, "outputs": classes, "judge": trained is True}
        first = examine_folder(
            *(explainer, train, "the training set" if test is not None else ""),
            kept=request.batch_size,
            prefix=prefix_of(request.data) if two else "",
            **options,  # type: ignore[arg-type]
        )
        second = None
        if test is not None:
            prefix = prefix_of(request.test) if two else ""
            second = examine_folder(explainer, test, "the test set", kept=0, prefix=prefix, **options)  # type: ignore[arg-type]
        parts = [first] if second is None else [first, second]
        count = f"{sum(len(one.split) for one in parts):,} pictures were examined: {where}; {how}"
        done.inputs.append(count)
        _skip(parts, test is not None, trained, done)
        twins = find_twins([one.split for one in parts])
        indices = classes if all(isinstance(label, int) for one in parts for label in one.split.labels) else None
        done.findings += [
            finding
            for finding in split_findings(first.split, None if second is None else second.split, indices, twins)
            if not (
                finding.kind == "label-range" and finding.level == "note"
            )  # a folder may show a part of all classes
        ]
        transform = explainer.loaded.transform
        for one in parts:
            is_told = any(finding.kind in ("normalization", "range") for finding in done.findings)
            if isinstance(transform, PictureTransform) and not is_told:
                mean, std = (torch.tensor(values, dtype=torch.float64) for values in (transform.mean, transform.std))
                done.findings += transform_findings(one.split, mean, std)
            done.findings += [*dim_findings(one), *unknown_findings(one, explainer)]
        judged = [picture for one in parts for picture in one.judged]
        done.findings += disagreements(judged, classes, explainer)
        images, labels = first.batch()
        if labels is not None and outputs == 1 and not bool(((labels == 0) | (labels == 1)).all()):
            labels = None
        pairs = [_pair(twin, parts, explainer) for twin in twins[:_PAIRS]]
        return cls(first, second, images, labels, outputs, pairs)

    def section(self) -> DataSection:
        """Return what the page shows of the data."""
        parts = [self.train] if self.test is None else [self.train, self.test]
        channels = [
            Channel(one.split.title or "all pictures", i, *numbers)
            for one in parts
            for i, numbers in enumerate(
                zip(
                    one.split.channels.mean.tolist(),
                    one.split.channels.std.tolist(),
                    one.split.channels.low.tolist(),
                    one.split.channels.high.tolist(),
                    strict=True,
                )
            )
        ]
        counts = {one.split.title or "all pictures": one.counts.most_common(60) for one in parts if one.counts}
        return DataSection(counts, channels, self.pairs)


def _skip(parts: Sequence[Examined], has_test: bool, trained: bool | None, done: Diagnosis) -> None:
    if not has_test:
        done.skipped.append(("leaks", "there is no --test folder, and no train and test folders in --data"))
    unreadable = [name for one in parts for name in one.unreadable]
    if unreadable:
        done.skipped.append((f"{len(unreadable)} pictures", f"cannot be read: {names_in_words(unreadable)}"))
    if left := sum(one.left for one in parts):
        done.skipped.append((f"{left:,} pictures", "only as many as 5,000 of a folder are read, evenly spread"))
    if trained is not True:
        why = "the weights are random" if trained is False else "it is unknown whether the weights are trained"
        done.skipped.append(("labels against predictions", why))


def _pair(twins: Twins, parts: Sequence[Examined], explainer: Explainer) -> Pair:
    pictures = []
    for name in twins.names:
        entry = next(one.entries[name] for one in parts if name in one.entries)
        found = decode(entry, explainer.loaded.transform, thumbnail=True)
        pictures.append(found.thumbnail or b"" if isinstance(found, Decoded) else b"")
    what = "in training and test set" if twins.crosses else "in one data set"
    labels = ", different labels" if twins.conflict else ""
    return Pair(*twins.names, *pictures, f"{'same pixels' if twins.exact else 'nearly the same'}, {what}{labels}")


def _is_trained(explainer: Explainer) -> bool | None:
    """Whether the weights are trained; None if nothing tells."""
    weights = explainer.loaded.weights
    if weights == _UNTRAINED:
        return False
    if weights != _UNKNOWN:
        return True
    batches = [buffer for name, buffer in explainer.model.named_buffers() if name.endswith("num_batches_tracked")]
    return bool(torch.stack(batches).any()) or None if batches else None


def _random_batch(explainer: Explainer, n: int, done: Diagnosis) -> tuple[Tensor, Tensor | None, int]:
    done.inputs.append(f"{n} random images stood for data, so only the structure of the model was examined")
    done.skipped.append(("data, labels and leaks", "no --data was given"))
    images = _random_images(explainer, n)
    return images, None, _outputs(explainer, images)


def _random_images(explainer: Explainer, n: int) -> Tensor:
    """Return what the transform makes of random pictures with large and small structures."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(n):
        coarse = np.kron(rng.integers(0, 200, (8, 8, 3)), np.ones((_SIDE // 8, _SIDE // 8, 1)))
        picture = (coarse + rng.integers(0, 56, (_SIDE, _SIDE, 3))).astype(np.uint8)
        images.append(explainer.loaded.transform(picture))
    return torch.stack(images)


def _outputs(explainer: Explainer, images: Tensor) -> int:
    """Return the number of classes; 0 for outputs that are not scores of classes.

    Raises:
        InputError: the model cannot take the images.
    """
    try:
        with torch.no_grad():
            scores = outputs_of(explainer.model(images.to(explainer.device)))
    except Exception as error:
        said = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"{explainer.loaded.spec} cannot take images {tuple(images.shape)}: {said}") from error
    if scores is None or len(scores) != len(images) or scores.ndim > 2:
        return 0
    return scores.shape[1] if scores.ndim == 2 else 1


def _loss(output: Any, labels: Tensor) -> Tensor:
    """Cross-entropy; for a single output the binary one."""
    scores = outputs_of(output)
    assert scores is not None
    if scores.ndim == 1 or scores.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(scores.reshape(len(labels)), labels.to(scores.dtype))
    return functional.cross_entropy(scores, labels)


def _loss_of_shares(output: Any, labels: Tensor) -> Tensor:
    """Cross-entropy of outputs that are probabilities."""
    shares = outputs_of(output)
    assert shares is not None
    return functional.nll_loss(shares.clamp(min=torch.finfo(shares.dtype).tiny).log(), labels)


def _settings(request: DoctorRequest, explainer: Explainer) -> dict[str, str]:
    loaded = explainer.loaded
    return {
        "model": f"{loaded.spec}, weights {loaded.weights}, on {explainer.device}",
        "pictures": f"prepared by {loaded.transform_source}: {loaded.transform.describe()}",
        "data": str(request.data or "none"),
        "test": str(request.test or "none"),
        "training": f"{request.steps} steps of Adam at 1e-3 with batches of {request.batch_size}, on a copy, seed 0",
        "versions": f"gradcam_kit {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "folder": str(Path(request.out)),
    }
