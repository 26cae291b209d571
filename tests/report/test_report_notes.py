"""What the page about a run says in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcam_kit.jobs import RunRequest
from gradcam_kit.jobs.work.command import command_of
from gradcam_kit.metrics import METRICS
from gradcam_kit.metrics.labels import _KNOWN, metric_label
from gradcam_kit.report.figures import Figures
from gradcam_kit.report.notes import failures, in_words, notes, warnings


def test_warnings_come_from_what_is_known_of_the_run() -> None:
    figures = Figures(pictures=3)
    assert warnings({"weights": "IMAGENET1K_V2", "pictures": 3}, figures) == []
    assert warnings({"weights": "random", "pictures": 4}, figures) == [
        "The weights are random, so the heatmaps are meaningless.",
        "The run is not finished: 3 of 4 pictures are done. Run the same command to resume.",
    ]


def test_failures_are_in_words_and_notes_of_another_shape_are_left_out() -> None:
    figures = Figures()
    figures.reasons.update({"PictureError: the file is empty": 2, "OSError: the file is empty": 1, "PictureError: ": 4})
    assert failures(figures) == [("PictureError: ", 4), ("the file is empty", 2), ("OSError: the file is empty", 1)]
    assert in_words("no colon") == "no colon"
    assert notes({"about": {"notes": ["a", 1, "x has random weights: y"]}}) == ["a"]
    assert notes({"about": {"notes": "text"}}) == notes({"about": {}}) == []


def test_every_metric_has_a_label_and_a_unit() -> None:
    assert set(_KNOWN) == set(METRICS)
    assert metric_label("deletion").note == "area under the score, lower is better"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, ""),
        ({"methods": ("a", "b"), "layers": ("l",)}, "--layer l --method a --method b"),
        ({"mean": (0.5, 0.25, 0.5), "overlays": 0}, "--mean 0.5,0.25,0.5 --overlays none"),
        (
            {"checkpoint": Path("w x.pt"), "compile": True, "shard_size": 7},
            "--checkpoint 'w x.pt' --shard-size 7 --compile",
        ),
        ({"report": False, "part": (1, 2), "fail_fast": True}, ""),
    ],
)
def test_the_command_has_the_options_that_are_not_defaults(options: dict[str, object], says: str) -> None:
    request = RunRequest("demo", source="my cats", out="run", **options)
    expected = "gradcam-kit run 'my cats' --model demo --out DIR" + (f" {says}" if says else "")
    assert sorted(command_of(request).split(" --")) == sorted(expected.split(" --"))


def test_what_came_from_python_has_no_command() -> None:
    assert command_of(RunRequest("demo", transform=len)) is None
    assert command_of(RunRequest("demo", class_names=("a", "b"))) is None
