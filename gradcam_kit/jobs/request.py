"""Requests and summaries of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import nn

from gradcam_kit.errors import InputError, OptionError, UnknownNameError, kind_of
from gradcam_kit.jobs.asked_targets import Targets as Targets
from gradcam_kit.jobs.cores import usable_cores
from gradcam_kit.options import one_of
from gradcam_kit.targets.scores import SCORES
from gradcam_kit.types import GradientRule

ENGINES = ("local", "ray")
PRECISIONS = ("float32", "bfloat16", "float16")

SHOWN = 5
"""Maximum number of failures that a summary shows."""


@dataclass(frozen=True)
class ModelRequest:
    """The options of commands that run a model: the model, its device, and the targets.

    Attributes:
        model: a specification, or a module, which is copied. `gradcam_kit.models.load_model` documents specifications
            and the attributes `checkpoint` to `std`.
        class_names: a file with one class name per line, or the names.
        transform: the transform for a module without one; any value that a module's attribute `transform` may have.
        device: a torch device; None = CUDA if it is available, else the CPU. Runs also accept several devices,
            separated by commas, and use all GPUs by default.
        dtype: one of `PRECISIONS`, the precision of the model's passes under autocast; heatmaps are always computed in
            float32.
        layers: target layers; empty = chosen automatically, once for all pictures.
        targets: `predicted`, `label` (the class that the picture's folder or table names), a class index or name, or
            `top:K`.
        scores: the kind of `score`: `softmax` or `sigmoid` of the outputs, or `raw`, the unchanged outputs (for models
            that return probabilities); None = detected from the model.
        batch_size: the largest number of images in one forward pass, masked images included.
        gradient_rule: `exact` or `balanced`, see `BaseCAM`; methods without gradients accept only `exact`.
    """

    model: str | nn.Module
    checkpoint: Path | None = None
    weights: str | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: Path | tuple[str, ...] | None = None
    transform: Any = None
    device: str | None = None
    dtype: str = "float32"
    layers: tuple[str, ...] = ()
    targets: str = "predicted"
    scores: str | None = None
    batch_size: int = 32
    gradient_rule: str = "exact"

    def __post_init__(self) -> None:
        if not isinstance(self.model, str | nn.Module):
            is_held = isinstance(getattr(self.model, "model", None), nn.Module)
            held = f"; it holds a module, so pass {type(self.model).__name__}.model" if is_held else ""
            raise InputError(
                f"the model is {kind_of(self.model)}; expected a torch.nn.Module, or a specification such as "
                f"'torchvision:resnet50'{held}"
            )
        _at_least("batch size", self.batch_size, 1)
        if self.dtype not in PRECISIONS:
            raise OptionError(f"the dtype is {self.dtype!r}; expected one of {', '.join(PRECISIONS)}")
        one_of("gradient_rule", self.gradient_rule, get_args(GradientRule), UnknownNameError)
        Targets.parse(self.targets)
        if self.scores is not None:
            one_of("the kind of scores", self.scores, SCORES)
        _each_in("--mean", self.mean, 0.0, 1.0)
        _each_in("--std", self.std, 1e-6, 1.0)

    @property
    def files(self) -> list[str]:
        """The files that the request names besides the pictures: the checkpoint and the class names."""
        return [str(path) for path in (self.checkpoint, self.class_names) if isinstance(path, str | Path)]


@dataclass(frozen=True)
class RunRequest(ModelRequest):
    """The options of a run, which explains all pictures of a source.

    Attributes:
        source: a picture, a folder, a glob, a list file or a table; also on remote storage (`s3://...`).
        out: the folder of the run; also on remote storage.
        methods: names in `METHODS`, or `package.module:Class`.
        metrics: names in `metrics.METRICS`, measured for every heatmap.
        workers: number of workers that decode pictures and of threads that write overlays; 0 = one per core, at most 8.
        overlays: number of pictures that get overlays, counted from the first; None = all.
        thumbnails: number of evenly spaced pictures that get a thumbnail for the report.
        shard_size: pictures per file of rows.
        part: `(i, n)`: do part i of n parts, counted from 0.
        engine: `local` or `ray`.
        overwrite: replace the run in `out`.
        retry_failed: try failed pictures again.
        fail_fast: stop at the first picture that fails.
        compile: compile the parts of the model around the target layers.
        report: write the report when all shards are complete.
        processes: decode the pictures of large sources in separate processes; the calling program must be importable.
    """

    source: str = "."
    out: str = "gradcam-run"
    methods: tuple[str, ...] = ("grad-cam",)
    metrics: tuple[str, ...] = ()
    workers: int = 0
    overlays: int | None = None
    thumbnails: int = 10_000
    shard_size: int = 1000
    part: tuple[int, int] = (0, 1)
    engine: str = "local"
    overwrite: bool = False
    retry_failed: bool = False
    fail_fast: bool = False
    compile: bool = False
    report: bool = True
    processes: bool = False

    @property
    def threads(self) -> int:
        """The number of workers; for `workers=0`, one per core and at most 8."""
        return self.workers or min(8, usable_cores())

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("number of workers", self.workers, 0)
        _at_least("shard size", self.shard_size, 1)
        if self.overlays is not None:
            _at_least("number of overlays", self.overlays, 0, "; None = all")
        _at_least("number of thumbnails", self.thumbnails, 0)
        for name in (*self.methods, *self.metrics):
            if not isinstance(name, str):
                raise InputError(
                    f"the method or metric {name!r} is not a string; expected a name, because a run stores names only"
                )
        if not self.methods:
            raise OptionError("no method is given; name at least one of the methods that 'gradcam-kit methods' lists")
        part, parts = self.part
        if not 0 <= part < parts:
            raise OptionError(f"the shard is {part}/{parts}; expected I/N with I from 0 to N - 1, such as 0/4")
        if self.overwrite and parts > 1:
            raise OptionError(
                "--overwrite would remove the results of other parts; instead, remove the folder before "
                "starting any part"
            )
        if self.engine not in ENGINES:
            raise OptionError(f"the engine is {self.engine!r}; expected {' or '.join(ENGINES)}")

    @classmethod
    def parse_part(cls, text: str) -> tuple[int, int]:
        """Parse `I/N` into a pair of integers.

        Raises:
            OptionError: the text does not have this form.
        """
        part, _, parts = text.partition("/")
        if not (part.isdecimal() and parts.isdecimal()):
            raise OptionError(f"the shard is {text!r}; expected I/N with I from 0 to N - 1, such as 0/4")
        return int(part), int(parts)


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run.

    Attributes:
        out: the folder of the run, or the file of a comparison.
        pictures: the number of pictures in complete shards.
        failed: number of pictures with an error row, or without a requested overlay.
        problems: the first few failures, one line each.
        seconds: duration of the call, without the report.
        before: number of pictures in shards that earlier calls completed, except shards whose failures are retried.
        missing: number of incomplete shards, of all parts.
        left: number of pictures of this part in incomplete shards, or not retried when the run stopped.
        interrupted: whether the run was stopped before its end.
        go_on: how to repeat the command to resume the run: "again", or "without --overwrite" if this option would
            start the run over; "" if nothing was written, so that there is nothing to resume.
        report: the path of the run's page, if it was written.
        means: the means of the metrics, see `MetricMeans.lines`.
        notes: the better direction and the settings of the metrics, one line per metric.
    """

    out: str
    pictures: int
    failed: int
    problems: tuple[str, ...]
    seconds: float
    before: int = 0
    missing: int = 0
    left: int = 0
    interrupted: bool = False
    report: str | None = None
    means: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    go_on: str = "again"

    @property
    def explained(self) -> int:
        """The number of pictures without a failure."""
        return self.pictures - self.failed

    @property
    def asked(self) -> int:
        """The number of pictures to explain, including unfinished ones."""
        return self.pictures + self.left

    @property
    def exit_status(self) -> int:
        """The exit status: 0 = all done, 1 = some pictures failed, 130 = interrupted."""
        return 130 if self.interrupted else int(self.failed > 0)


@dataclass
class Problems:
    """The number of failed pictures, with a line for each of the first few failures."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, key: str, error: Exception) -> None:
        """Count a failed picture, and keep its error as a line if it is one of the first few."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(one_line(f"{key}: {error}"))

    def summary(self, out: str | Path, pictures: int, seconds: float) -> RunSummary:
        """Return the summary of a command with these failures."""
        return RunSummary(str(out), pictures, self.count, tuple(self.first), seconds)


def one_line(text: object) -> str:
    """Return a text as a single line that can be encoded as UTF-8, even if it holds undecodable bytes."""
    return " ".join(str(text).split()).encode("utf-8", "backslashreplace").decode()


def _each_in(option: str, values: tuple[float, ...] | None, least: float, most: float) -> None:
    if values is not None and (len(values) not in (1, 3) or not all(least <= value <= most for value in values)):
        given = ",".join(f"{value:g}" for value in values)
        bounds = "from 0 to 1" if least == 0 else "from 1e-6 to 1"
        raise OptionError(
            f"{option} is {given}; expected three numbers {bounds}, one per channel of a picture scaled to [0, 1], or "
            "a single number for gray pictures"
        )


def _at_least(what: str, value: object, least: int, others: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"the {what} is {value!r}; expected an integer of at least {least}{others}")
    if value < least:
        raise OptionError(f"the {what} is {value}; expected at least {least}")
