"""What a person asks of a run, and what the run answers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gradcam_kit.errors import OptionError, did_you_mean

PRECISIONS = ("float32", "bfloat16", "float16")
_SHOWN = 5

TargetKind = Literal["predicted", "label", "class", "top"]


@dataclass(frozen=True)
class ModelRequest:
    """Which model, where, and what of it is explained: the options that all commands share.

    Attributes:
        model: a specification, see `gradcam_kit.models.load_model`, as are the attributes up to `std`.
        class_names: a file with one class name on a line.
        device: None = CUDA if there is any, else the CPU.
        dtype: one of `PRECISIONS`, for model and images; heatmaps are computed in float32 all the same.
        layers: target layers; none = chosen once, for all pictures.
        targets: `predicted`, `label` (the name of the picture's folder), a class index, or `top:K`.
        batch_size: the most images in one forward pass, masked ones included.
    """

    model: str
    checkpoint: Path | None = None
    weights: str | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: Path | None = None
    device: str | None = None
    dtype: str = "float32"
    layers: tuple[str, ...] = ()
    targets: str = "predicted"
    batch_size: int = 32

    def __post_init__(self) -> None:
        _at_least("batch size", self.batch_size, 1)
        if self.dtype not in PRECISIONS:
            raise OptionError(f"the dtype is {self.dtype!r}; expected one of {', '.join(PRECISIONS)}")
        Targets.parse(self.targets)


@dataclass(frozen=True)
class RunRequest(ModelRequest):
    """Heatmaps for all pictures of a source.

    Attributes:
        source: a picture, a folder, a glob or a list file.
        out: the folder of the run.
        methods: names in `METHODS`.
        workers: threads that read pictures, and as many that write overlays; 0 = one per core, at most 8.
        overlays: how many pictures get overlays; None = all.
        shard_size: pictures in one file of rows.
        overwrite: replace a run that `out` holds.
        fail_fast: stop at the first picture that fails.
    """

    source: str = "."
    out: Path = Path("gradcam-run")
    methods: tuple[str, ...] = ("grad-cam",)
    workers: int = 0
    overlays: int | None = None
    shard_size: int = 1000
    overwrite: bool = False
    fail_fast: bool = False

    @property
    def threads(self) -> int:
        """The number of workers."""
        return self.workers or min(8, os.cpu_count() or 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("number of workers", self.workers, 0)
        _at_least("shard size", self.shard_size, 1)
        _at_least("number of overlays", self.overlays or 0, 0)
        if not self.methods:
            raise OptionError("no method is asked for; name at least one of those that 'gradcam-kit methods' lists")


@dataclass(frozen=True)
class RunSummary:
    """What became of a run.

    Attributes:
        failed: pictures with an error row, or without the overlays that were asked for.
        problems: the first few failures, one line each.
        seconds: from the request to the last file.
    """

    out: Path
    pictures: int
    failed: int
    problems: tuple[str, ...]
    seconds: float

    @property
    def exit_status(self) -> int:
        """0 = all done, 1 = some pictures failed."""
        return int(self.failed > 0)


@dataclass
class Problems:
    """How many pictures failed, and the first few of them in words."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, key: str, error: Exception) -> None:
        """Count a picture."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(one_line(f"{key}: {error}"))

    def summary(self, out: Path, pictures: int, seconds: float) -> RunSummary:
        """What became of all pictures."""
        return RunSummary(out, pictures, self.count, tuple(self.first), seconds)


@dataclass(frozen=True)
class Targets:
    """What is explained in each picture; `number` is the class index of "class" and K of "top"."""

    kind: TargetKind
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> Targets:
        """Read `predicted`, `label`, an integer or `top:K`.

        Raises:
            OptionError: anything else.
        """
        match text.partition(":"):
            case ("predicted" | "label") as kind, "", "":
                return cls(kind)
            case "top", ":", number if number.isdecimal() and int(number) > 0:
                return cls("top", int(number))
            case number, "", "" if number.removeprefix("-").isdecimal():
                return cls("class", int(number))  # one that is negative is the model's to refuse
        hint = did_you_mean(text, ["predicted", "label", "top:5"])
        raise OptionError(f"the targets are {text!r}{hint}; expected predicted, label, an index or top:K with K > 0")


def one_line(text: object) -> str:
    """A text as rows and terminals can hold it: on one line, and encodable whatever bytes a file name had."""
    return " ".join(str(text).split()).encode("utf-8", "backslashreplace").decode()


def _at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise OptionError(f"the {what} is {value}; expected at least {least}")
