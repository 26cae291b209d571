"""The data that `doctor` examines: folders of pictures, or random images if there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradcam_kit.diagnostics.checks.data import names_in_words, split_findings
from gradcam_kit.diagnostics.checks.duplicates import Twins, find_twins
from gradcam_kit.diagnostics.checks.scales import transform_findings
from gradcam_kit.diagnostics.checks.tasks import outputs_of
from gradcam_kit.diagnostics.show.page import Channel, DataSection, Pair
from gradcam_kit.errors import InputError, raise_interruption
from gradcam_kit.jobs.request import one_line
from gradcam_kit.jobs.work.diagnosis import Diagnosis, DoctorRequest
from gradcam_kit.jobs.work.examined import Examined, classes_of, examine_folder, list_folders, prefix_of
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.folder_findings import dim_findings, disagreements, unknown_findings
from gradcam_kit.jobs.work.reader import Decoded, decode
from gradcam_kit.transforms import PictureTransform

_SIDE = 256  # height and width of the random pictures in pixels
_PAIRS = 12


@dataclass
class ExaminedData:
    """The examined training and test pictures, a batch of images for the model, and pairs of similar pictures.

    Attributes:
        train: the examined training pictures, or all pictures if there is no test set.
        test: the examined test pictures, if there is a test set.
        images: the batch of images from `train`.
        labels: the classes of these images; None if most of them have no label, or if labels do not suit the outputs.
        outputs: number of class scores per image, see `count_outputs`.
        pairs: the first pairs of pictures with the same or nearly the same pixels.
    """

    train: Examined
    test: Examined | None
    images: Tensor
    labels: Tensor | None
    outputs: int
    pairs: list[Pair]

    @classmethod
    def read(cls, request: DoctorRequest, explainer: Explainer, trained: bool | None, done: Diagnosis) -> ExaminedData:
        """Read the folders, and examine their pictures."""
        assert request.data is not None
        train, test, where = list_folders(request.data, request.test, request.out)
        outputs = count_outputs(explainer, random_images(explainer, 2))
        class_of, how = classes_of(explainer, [*train, *(test or ())], max(2, outputs))
        two = request.test is not None
        classes = 2 if outputs == 1 else outputs  # one logit means two classes
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
            # A folder may have only some of the classes.
            if not (finding.kind == "label-range" and finding.level == "note")
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
        """Return the data section of the page."""
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
        done.skipped.append(("leaks", "--test was not given, and --data has no folders named train and test"))
    unreadable = [name for one in parts for name in one.unreadable]
    if unreadable:
        done.skipped.append((f"{len(unreadable)} pictures", f"cannot be read: {names_in_words(unreadable)}"))
    if left := sum(one.left for one in parts):
        done.skipped.append((f"{left:,} pictures", "at most 5,000 pictures of a folder are read, evenly spaced"))
    if trained is not True:
        why = "the weights are random" if trained is False else "it is unknown whether the weights are trained"
        done.skipped.append(("labels against predictions", why))


def _pair(twins: Twins, parts: Sequence[Examined], explainer: Explainer) -> Pair:
    pictures = []
    for name in twins.names:
        entry = next(one.entries[name] for one in parts if name in one.entries)
        found = decode(entry, explainer.loaded.transform, thumbnail=True)
        pictures.append(found.thumbnail or b"" if isinstance(found, Decoded) else b"")
    what = "in the training set and the test set" if twins.crosses else "in one data set"
    labels = ", different labels" if twins.conflict else ""
    first, second = twins.names
    return Pair(
        first,
        second,
        pictures[0],
        pictures[1],
        f"{'same pixels' if twins.exact else 'nearly the same'}, {what}{labels}",
    )


def random_images(explainer: Explainer, n: int) -> Tensor:
    """Return random pictures with large and small structures, transformed for the model."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(n):
        coarse = np.kron(rng.integers(0, 200, (8, 8, 3)), np.ones((_SIDE // 8, _SIDE // 8, 1)))
        picture = (coarse + rng.integers(0, 56, (_SIDE, _SIDE, 3))).astype(np.uint8)
        images.append(explainer.loaded.transform(picture))
    return torch.stack(images)


def count_outputs(explainer: Explainer, images: Tensor) -> int:
    """Return the number of class scores per image; 0 if the outputs are not class scores.

    Raises:
        InputError: the model does not accept the images.
    """
    try:
        with torch.no_grad():
            scores = outputs_of(explainer.model(images.to(explainer.device)))
    except Exception as error:
        raise_interruption(error)
        said = one_line(f"{type(error).__name__}: {error}")
        raise InputError(
            f"{explainer.loaded.spec} does not accept images of shape {tuple(images.shape)}: {said}"
        ) from error
    if scores is None or len(scores) != len(images) or scores.ndim > 2:
        return 0
    return scores.shape[1] if scores.ndim == 2 else 1
