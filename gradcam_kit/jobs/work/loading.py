"""Load the requested model, and set up its methods on the first usable picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from gradcam_kit.capture import check_model
from gradcam_kit.errors import (
    GradCamKitError,
    InputError,
    NonFiniteError,
    OptionError,
    raise_interruption,
)
from gradcam_kit.jobs.request import ModelRequest, Targets
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.labels import Labels
from gradcam_kit.jobs.sources.masks import Masks
from gradcam_kit.jobs.sources.reading import depth_note
from gradcam_kit.jobs.sources.text import read_text
from gradcam_kit.jobs.work.batches import Batch
from gradcam_kit.jobs.work.explainer import Explained, Explainer
from gradcam_kit.jobs.work.measuring import MeasuredBatch, Measurer
from gradcam_kit.jobs.work.methods import layers_of, method_classes, request_fault, with_methods
from gradcam_kit.jobs.work.reader import Decoded, Failed, decode
from gradcam_kit.jobs.work.scores import with_scores
from gradcam_kit.methods import METHODS, single_pass_methods
from gradcam_kit.models import from_module, load_model
from gradcam_kit.targets.names import normalized
from gradcam_kit.targets.scores import ScoreKind

TRIED = 1000  # maximum number of pictures to open until one can be read
_EXPLAINED = 8  # maximum number of pictures to explain until one succeeds


def load_explainer(request: ModelRequest, console: Console | None = None) -> Explainer:
    """Load the model onto its device; methods are added by `with_methods`.

    Args:
        request: the options of the model.
        console: where notes about the model are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is invalid.
    """
    device, *_ = [usable_device(name) for name in device_names(request.device)]
    names = _lines(request.class_names) if isinstance(request.class_names, Path) else request.class_names
    if isinstance(request.model, nn.Module):
        loaded = from_module(request.model, request.transform, names)
    else:
        loaded = load_model(
            request.model,
            checkpoint=request.checkpoint,
            weights=request.weights,
            image_size=request.image_size,
            mean=request.mean,
            std=request.std,
            class_names=names,
        )
    for text in loaded.notes:
        note(console, text)
    model = check_model(loaded.model.to(device))
    dtype: torch.dtype = getattr(torch, request.dtype)
    kind: ScoreKind | None = request.scores  # type: ignore[assignment]  # the request has checked it
    targets = Targets.parse(request.targets).of_names(loaded.class_names)
    return Explainer(loaded, model, (), targets, Labels(loaded.class_names), device, dtype, scores=kind)


def make_explainer(
    request: ModelRequest, methods: Iterable[str], entries: Iterable[Entry], console: Console | None = None
) -> Explainer:
    """Load the model and set up the methods; automatic layers are chosen on the first usable picture.

    Args:
        request: the options of the model.
        methods: names in `METHODS` or `package.module:Class`; empty = all single-pass methods that suit the model.
        entries: the pictures that will be explained.
        console: where notes are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is invalid.
    """
    classes = method_classes(methods)
    explainer = load_explainer(request, console)
    readable = islice(_readable(explainer, entries), _EXPLAINED)
    first = next(readable, None)
    nameless = explainer.targets.kind == "label" and not explainer.loaded.class_names
    if nameless and first is not None and explainer.labels.index(first.entry) is None:
        raise OptionError(
            "targets=label needs class names, but the model has none; give a file of names with --class-names"
        )
    candidates, fault = chain([first], readable), None
    for one in candidates:
        try:
            asked = classes or [METHODS[name] for name in single_pass_methods()]
            explainer = with_methods(explainer, asked, request.layers, one, request.batch_size, request.gradient_rule)
            break
        except GradCamKitError as error:  # perhaps only this picture is at fault
            fault = fault or error
    else:
        assert fault is not None
        raise fault
    dark = None if first is None else depth_note(first.entry)
    for text in [*_layer_notes(explainer, request.layers), *filter(None, [dark])]:
        note(console, text)
    if classes or one is None:
        explainer, said = with_scores(explainer, filter(None, chain([one], candidates)))
        for text in said:
            note(console, text)
        return explainer
    tried = (
        [cam for cam in explainer.cams if explainer.suits(cam, picture)]
        for picture in chain([one], candidates)
        if picture
    )
    fitting = next((cams for cams in tried if cams), [])
    left_out = [cam.name for cam in explainer.cams if cam not in fitting]
    if left_out and fitting:
        note(console, f"left out methods that do not suit the model or layer: {', '.join(left_out)}")
    return replace(explainer, cams=tuple(fitting) or explainer.cams)


def verify(explainer: Explainer, entries: Iterable[Entry]) -> None:
    """Raise an error if none of the first pictures can be explained, instead of reporting every picture.

    Raises:
        GradCamKitError: the model or a method fails on all of the first readable pictures.
    """
    found: list[Explained] = []
    for one in islice(_readable(explainer, entries), _EXPLAINED):
        found += explainer.explain(Batch([one]))
        if not _shared_error(found):
            return
    if error := _shared_error(found):
        raise request_fault(explainer, error)


def metric_settings(
    explainer: Explainer, entries: Iterable[Entry], targets: Targets, masks: Masks | None = None
) -> dict[str, dict[str, Any]]:
    """Return the settings of each metric, obtained by measuring the first picture that can be explained.

    Args:
        explainer: the explainer, whose metrics are measured.
        entries: the pictures.
        targets: the classes that the run explains.
        masks: masks of the objects, for metrics that need them.

    Raises:
        GradCamKitError: a metric cannot be computed for this picture.
    """
    if not explainer.metrics:
        return {}
    silent = replace(explainer, metrics=())
    locating = [metric.name for metric in explainer.metrics if metric.needs_masks]
    for one in islice(_readable(explainer, entries), _EXPLAINED):
        [found] = silent.explain(Batch([one]))
        if found.error is None:
            try:
                with explainer.precision():
                    images, cams = explainer.images([one]), explainer.cams[:1]
                    everywhere = torch.ones(1, *one.shape, dtype=torch.bool)  # no setting depends on the mask
                    measurer = Measurer(explainer.model, cams, explainer.metrics, explainer.scores, targets.policy)
                    [results] = measurer.results(MeasuredBatch(images, [found.rows], masks=everywhere)).values()
            except Exception as error:
                raise_interruption(error)
                raise request_fault(explainer, error) from error
            origin = {name: {"masks": masks.origin} for name in locating} if masks is not None else {}
            return {name: {**result.settings, **origin.get(name, {})} for name, result in results.items()}
    return {metric.name: {} for metric in explainer.metrics}  # no picture was explained; the rows contain the reason


def note(console: Console | None, text: str) -> None:
    """Show a message to the user."""
    if console is not None:
        console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)


def device_names(asked: str | None) -> list[str]:
    """Split names of devices at commas; without a name, or for `cuda`, return all GPUs, if there are several."""
    if asked is not None and asked != "cuda":
        return [name.strip() for name in asked.split(",")]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)] if count > 1 else [asked or ("cuda" if count else "cpu")]


def usable_device(name: str) -> torch.device:
    """Return the device of this name.

    Raises:
        OptionError: the device cannot be used.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _readable(explainer: Explainer, entries: Iterable[Entry]) -> Iterator[Decoded]:
    """Yield the first pictures that can be read and transformed.

    Raises:
        InputError: the model's transform fails on all of the first readable pictures.
    """
    broken: list[Failed] = []
    is_good = False
    for entry in islice(entries, TRIED):
        one = decode(entry, explainer.loaded.transform)
        if isinstance(one, Decoded):
            is_good = True
            yield one
        elif one.by_transform and not is_good:
            broken.append(one)
            if len(broken) == _EXPLAINED:
                break
    if broken and not is_good:
        raise InputError(
            f"the transform of {explainer.loaded.spec} fails on all of the first pictures: {broken[0].reason}"
        )


def _shared_error(found: Sequence[Explained]) -> Exception | None:
    """Return the first error if every picture failed in the model, because then the request is at fault."""
    errors = [explained.error for explained in found if explained.reached_model]
    if errors and all(error is not None and not isinstance(error, NonFiniteError) for error in errors):
        return errors[0]
    return None


def _layer_notes(explainer: Explainer, asked: Sequence[str]) -> list[str]:
    if asked:
        return []
    chosen: dict[str, list[str]] = {}
    for name, layers in layers_of(explainer).items():
        if layers:
            chosen.setdefault(" + ".join(layers), []).append(name)
    by = {layer: f" by {', '.join(names)}" if len(chosen) > 1 else "" for layer, names in chosen.items()}
    return [f"the layer {layer} is explained{said} (see --layer)" for layer, said in by.items()]


def _lines(path: Path) -> list[str]:
    """Return the names in a file, one per line, without surrounding blanks and byte order mark."""
    try:
        text = read_text(str(path), path.read_bytes())
    except OSError as error:
        raise InputError(f"the class names in {str(path)!r} cannot be read: {error.strerror or error}") from error
    lines = [normalized(line) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
