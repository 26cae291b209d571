"""The request and the result of `doctor`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.report import Report
from gradcam_kit.diagnostics.show.page import FeatureMaps, PartTable, Strips
from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.request import ModelRequest


@dataclass(frozen=True)
class DoctorRequest:
    """The options of `doctor`.

    Attributes:
        model: the options of the model.
        data: the training pictures: a folder with one subfolder per class, a glob, a list or a table; None = random
            images.
        test: the test pictures, in the same forms; None = the folders in `data` with names such as `test` or `val`, if
            `data` also has a folder such as `train`.
        steps: number of training steps on a copy of the model.
        batch_size: number of images in each training step.
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
            raise OptionError("--test needs --data, because leaks are found by comparing both; add --data")


@dataclass
class Diagnosis:
    """The result of `doctor`.

    Attributes:
        findings: all findings, the worst first.
        inputs: description of the examined inputs.
        skipped: checks that were skipped, with the reasons.
        page: path of the HTML page.
        seconds: part of the examination -> its duration in seconds.
        report: statistics of the layers of the trained copy.
        maps: feature maps of some layers.
        strips: name of a layer -> its plots over training steps and by unit.
        parts: tables about attention, recurrent layers and pyramids, if the model has them.
        attention: attention maps of the heads of some layers.
    """

    findings: list[Finding] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    page: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    report: Report | None = None
    maps: list[FeatureMaps] = field(default_factory=list)
    strips: dict[str, Strips] = field(default_factory=dict)
    parts: list[PartTable] = field(default_factory=list)
    attention: list[FeatureMaps] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """The exit status: 0 = no bad finding, 1 = at least one."""
        return int(any(finding.level == "bad" for finding in self.findings))

    def to_json(self) -> str:
        """Return all findings as strict JSON."""
        return json.dumps({"findings": [finding.to_dict() for finding in self.findings]}, indent=1, allow_nan=False)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the duration of the block to that of a part of the examination."""
        start = time.monotonic()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - start
