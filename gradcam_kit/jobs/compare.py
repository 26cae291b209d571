"""Compare methods on pictures from disk, and write the results as a sheet, a page or a table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from rich.console import Console
from torch import Tensor

from gradcam_kit.capture import read_inputs
from gradcam_kit.comparison import Comparison, check_ending, compare, write_comparisons
from gradcam_kit.comparison.compared import ComparedMethod, compared_methods, suited
from gradcam_kit.errors import InputError, OptionError, PictureError, exits_refused, raise_interruption
from gradcam_kit.jobs.progress import ProgressBar
from gradcam_kit.jobs.request import ModelRequest, Problems, RunSummary
from gradcam_kit.jobs.sources.index import Entry, index_pictures
from gradcam_kit.jobs.sources.masks import Masks
from gradcam_kit.jobs.sources.reading import depth_note, read_entry
from gradcam_kit.jobs.storage.addresses import check_local, local_path
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.loading import load_explainer, note
from gradcam_kit.jobs.work.measuring import MetricMeans, chosen_metrics
from gradcam_kit.jobs.work.methods import method_classes
from gradcam_kit.jobs.work.paired_numbers import comparison_lines
from gradcam_kit.jobs.work.reader import batches

_LARGEST = 448  # maximum width and height of a displayed picture, in pixels


@dataclass(frozen=True)
class SheetRequest(ModelRequest):
    """The options of `compare`.

    If several `layers` are given, each is compared separately. The maps of layers that are joined by `+` are fused.

    Attributes:
        sources: pictures, folders, globs, list files or tables.
        out: the file to write; its extension selects a picture, a page (.html) or a table (.csv).
        methods: names in `METHODS` or `BASELINES`; none = all single-pass methods that suit the model.
        metrics: names in `METRICS`.
        masks: a folder of masks, see `Masks`, for metrics that compare heatmaps with objects.
        overwrite: replace an existing file.
    """

    sources: tuple[str, ...] = ()
    out: Path = Path("methods.png")
    methods: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    masks: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class _Ready:
    """A picture as model input, and the region of the picture that the model sees."""

    entry: Entry
    image: Float[Tensor, "c h w"]
    seen: UInt8[np.ndarray, "height width 3"]
    mask: Bool[Tensor, "h w"] | None


@exits_refused()
def render_sheet(request: SheetRequest, console: Console | None = None) -> RunSummary:
    """Explain pictures with several methods, and write the results to one file; leave out pictures that fail.

    Raises:
        GradCamKitError: the request is invalid, or no picture could be explained.
    """
    start = time.monotonic()
    check_local(request.out, "compare")
    check_ending(request.out)
    if os.path.lexists(request.out) and not request.overwrite:
        raise OptionError(f"{str(request.out)!r} already exists; choose another file, or add --overwrite")
    masks = None if request.masks is None else Masks(request.masks)
    asked = any(metric.needs_masks for metric in chosen_metrics(request.metrics, masks))
    found = [entry for source in request.sources for entry in index_pictures(source, str(request.out))]
    entries = list({entry.path: entry for entry in found}.values())
    _check_inputs_stay(request, entries)
    explainer = load_explainer(request, console)
    if (dark := depth_note(entries[0])) is not None:
        note(console, dark)
    if masks is not None:
        masks.check(explainer.loaded.transform)
        masks.check_pictures(entries)
    sheet = _Sheet(request, explainer, _distinct_names(entries), masks if asked else None, console)
    means = MetricMeans()
    with ProgressBar(console or Console(quiet=True), len(entries), "comparing") as bar:
        comparisons = list(sheet.comparisons(entries, bar))
    if not comparisons:
        raise PictureError(f"no picture could be explained: {sheet.problems.first[0]}")
    write_comparisons(request.out, comparisons)
    for one in comparisons:
        for label, numbers in {**one.measured, **one.baselines}.items():
            means.add_measured(label, numbers)
    summary = sheet.problems.summary(request.out, len(entries), time.monotonic() - start)
    return replace(summary, means=tuple(means.lines()), notes=(*comparisons[0].notes, *comparison_lines(comparisons)))


def _check_inputs_stay(request: SheetRequest, entries: Sequence[Entry]) -> None:
    """Refuse to overwrite an input file, even if `out` is a different path to the same file.

    Raises:
        OptionError: `out` is an input of the comparison.
    """
    if not os.path.exists(request.out):
        return
    read = map(local_path, (*(entry.path for entry in entries), *request.sources, *request.files))
    folder = None if request.masks is None else local_path(request.masks)
    is_mask = folder is not None and Path(os.path.realpath(folder)) in Path(os.path.realpath(request.out)).parents
    if is_mask or any(path is not None and _is_same_file(path, request.out) for path in read):
        raise OptionError(f"--out {str(request.out)!r} is read by this comparison; choose another file")


def _is_same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)  # covers hard links, and names that differ only in case
    except OSError:
        return False


@dataclass
class _Sheet:
    request: SheetRequest
    explainer: Explainer
    names: dict[Entry, str]
    masks: Masks | None
    console: Console | None
    problems: Problems = field(default_factory=Problems)
    compared_methods: list[ComparedMethod] = field(default_factory=list)
    """The methods, set up with the first readable picture."""

    def comparisons(self, entries: Sequence[Entry], bar: ProgressBar) -> Iterator[Comparison]:
        """Yield one comparison for each batch of pictures."""
        for batch in batches(entries, self.request.batch_size):
            before = self.problems.count
            if ready := [one for one in map(self._read, batch) if one is not None]:
                if not self.compared_methods:
                    self._choose(ready[0])
                yield from self._compared(ready)
            bar.add(len(batch), self.problems.count - before)

    def _read(self, entry: Entry) -> _Ready | None:
        try:
            return self._prepared(entry)
        except Exception as error:  # one picture must not keep the others from being explained
            raise_interruption(error)
            self.problems.add(self.names[entry], error)
            return None

    def _prepared(self, entry: Entry) -> _Ready:
        picture, transform = read_entry(entry), self.explainer.loaded.transform
        image, size = transform(picture), picture.shape[:2]
        box, mask = transform.box(*size), None
        if self.masks is not None:
            mask = torch.from_numpy(self.masks.of(self._mask_key(entry), size, box, (image.shape[1], image.shape[2])))
        x0, y0, x1, y1 = map(round, box)
        seen = Image.fromarray(picture).crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
        seen.thumbnail((_LARGEST, _LARGEST))
        return _Ready(entry, image, np.asarray(seen), mask)

    def _mask_key(self, entry: Entry) -> str:
        """Return the key for a picture's mask: its name or, if only a longer tail of its path has a mask, this tail.

        The name of a picture that is given as a single file lacks its folders, which the mask's path may contain. Tails
        shorter than the name are never tried, because they might match the mask of another picture.
        """
        assert self.masks is not None
        name, parts = self.names[entry], Path(entry.path).parts
        longer = range(len(parts) - len(Path(name).parts) - 1, 0, -1)
        ends = (Path(*parts[start:]).as_posix() for start in longer)
        return next(filter(self.masks.has, [name, *ends]), name)

    def _choose(self, one: _Ready) -> None:
        """Set up the requested methods or, if none was requested, those that suit the model.

        Raises:
            GradCamKitError: a method, a layer or the model cannot be used.
        """
        layers = [name.split("+") if "+" in name else name for name in self.request.layers]
        options = {"batch_size": self.request.batch_size}
        # A name with a colon is a user-defined class.
        methods = [method_classes([name])[0] if ":" in name else name for name in self.request.methods]
        found = compared_methods(self.explainer.model, methods or "all", layers or None, options)
        fitting, left_out = suited(found, read_inputs(self._images([one]), {}))
        if not fitting or (left_out and self.request.methods):
            method, (problem, *_) = next(iter(left_out)), left_out.values()
            raise InputError(f"{method} cannot explain {self.names[one.entry]!r} with {self.request.model}: {problem}")
        if left_out:
            note(self.console, f"left out methods that do not suit the model or layer: {', '.join(left_out)}")
        self.compared_methods = fitting

    def _compared(self, group: list[_Ready]) -> Iterator[Comparison]:
        """Explain all pictures in one pass; if this fails, explain each alone, to leave out only the faulty ones."""
        try:
            found = [self._compare(group)]
        except Exception as error:  # whatever the error, explain the other pictures
            raise_interruption(error)
            if len(group) == 1:
                self.problems.add(self.names[group[0].entry], error)
                return
            found = []
        yield from found or [two for one in group for two in self._compared([one])]

    def _compare(self, group: list[_Ready]) -> Comparison:
        images = self._images(group)
        with (
            exits_refused(),
            torch.autocast(images.device.type, self.explainer.dtype, enabled=self.explainer.dtype != images.dtype),
        ):
            found = compare(
                self.explainer.model,
                images,
                {one.label: one.cam or one.method for one in self.compared_methods},
                targets=self.explainer.classes(images, [one.entry for one in group]),
                metrics=self.request.metrics,
                masks=None if self.masks is None else torch.stack([one.mask for one in group if one.mask is not None]),
                pictures=[one.seen for one in group],
                names=[self.names[one.entry] for one in group],
                class_names=self.explainer.loaded.class_names,
                scores=self.explainer.scores,
                # Random numbers are derived from names, so that they do not depend on the other pictures.
                identities=torch.tensor([crc32(self.names[one.entry].encode()) for one in group]),
                batch_size=self.request.batch_size,
            )
        return replace(found, model_name=self.explainer.loaded.spec)

    def _images(self, group: Sequence[_Ready]) -> Float[Tensor, "n c h w"]:
        weight = next(self.explainer.model.parameters(), torch.empty(0))
        return torch.stack([one.image for one in group]).to(self.explainer.device, weight.dtype)


def _distinct_names(entries: Sequence[Entry]) -> dict[Entry, str]:
    """Return distinct names of the pictures: their keys or, if a key occurs twice, paths below a common folder."""
    if len({entry.key for entry in entries}) == len(entries):
        return {entry: entry.key for entry in entries}
    root = os.path.commonpath([os.path.dirname(entry.path) for entry in entries])
    return {entry: Path(entry.path).relative_to(root).as_posix() for entry in entries}
