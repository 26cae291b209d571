"""Requests of a run: wrong ones leave nothing behind, all that matters is written down; sheets."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import disk
import pytest
import torch
from PIL import Image

from gradcam_kit.errors import (
    ClassIndexError,
    GradCamKitError,
    InputError,
    LayerNotFoundError,
    OptionError,
    PictureError,
    UnknownNameError,
)
from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import RunRequest, RunSummary, run
from gradcam_kit.jobs.compare import SheetRequest, render_sheet
from gradcam_kit.jobs.request import Targets
from gradcam_kit.models import load_model


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def explain(source: str = "pictures", model: str = "shop:net", **options: Any) -> RunSummary:
    """A run into the folder `out`."""
    return run(RunRequest(**{"model": model, "source": source, "out": "out", "workers": 2, "report": False, **options}))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "shop:never"}, InputError, "shop:never does not accept these pictures: RuntimeError:"),
        ({"model": "shop:never", "layers": ("stage2",)}, InputError, "shop:never does not accept these pictures"),
        ({"targets": "3"}, ClassIndexError, "class 3 for a model with 3 output"),
        ({"targets": "-1"}, ClassIndexError, "class -1"),
        ({"targets": "predict"}, UnknownNameError, "a class name, or 'class:NAME'; there is no class 'predict' among"),
        (
            {"model": "shop:nameless", "targets": "cat"},
            OptionError,
            "the model has no class names, so give them with --class-names",
        ),
        ({"scores": "percent"}, OptionError, "the kind of scores is 'percent'; expected 'softmax', 'sigmoid', 'raw'"),
        ({"targets": "top:4"}, ClassIndexError, "the targets are top:4, but the number of classes is 3"),
        ({"layers": ("stage3",)}, LayerNotFoundError, "no layer 'stage3'; did you mean 'stage2'"),
        ({"layers": ("fc",)}, GradCamKitError, "'fc'"),
        ({"model": "shop:nameless", "targets": "label"}, OptionError, "needs class names"),
        ({"device": "tpu9"}, OptionError, "the device 'tpu9' cannot be used"),
        ({"class_names": Path("none.txt")}, InputError, "class names in 'none.txt' cannot be read"),
    ],
)
def test_a_wrong_request_is_an_error_and_leaves_nothing(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    disk.write_pictures(Path("pictures"))
    with pytest.raises(error) as caught:
        explain(**options)
    assert says in str(caught.value)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": "top:0"}, "the targets are 'top:0'"),
        ({"dtype": "float64"}, "the dtype is 'float64'; expected one of float32, bfloat16, float16"),
        ({"batch_size": 0}, "the batch size is 0; expected at least 1"),
        ({"workers": -1}, "the number of workers is -1"),
        ({"shard_size": 0}, "the shard size is 0"),
        ({"overlays": -2}, "the number of overlays is -2"),
        ({"methods": ()}, "no method is given"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        RunRequest(**{"model": "demo", **options})
    assert says in str(caught.value)


def test_targets_are_parsed() -> None:
    assert [Targets.parse(text) for text in ("predicted", "label", "7", "top:3", "cat", "class:7", "a:b")] == [
        Targets("predicted"),
        Targets("label"),
        Targets("class", 7, "7"),
        Targets("top", 3),
        Targets("name", name="cat"),
        Targets("name", name="7"),
        Targets("name", name="a:b"),
    ]


def test_a_number_that_is_an_index_and_a_name_is_refused() -> None:
    digits = ("one", "0", "two")
    assert Targets.parse("2").of_names(digits).number == 2
    assert Targets.parse("class:0").of_names(digits) == Targets("class", 1)
    with pytest.raises(
        OptionError, match="0 are ambiguous: the index of class 0, 'one', and the name of class 1; write class:NAME"
    ):
        Targets.parse("0").of_names(digits)


def test_fail_fast_stops_and_leaves_no_half_shard() -> None:
    disk.write_pictures(Path("pictures"))
    disk.break_pictures(Path("pictures"))
    summary = explain(fail_fast=True, shard_size=3, batch_size=2)
    assert (summary.failed, summary.exit_status) == (1, 1)
    assert summary.pictures < 11
    rows = disk.read_rows(Path("out"))
    assert len(rows) % 3 == 0
    assert all(row["status"] == "ok" for row in rows)


def test_trying_again_until_the_first_failure_counts_every_picture_once() -> None:
    for name in "bcd":
        disk.write_picture(Path(f"pictures/{name}.png"), disk.CAT)
    for name in "ae":
        Path(f"pictures/{name}.png").write_text("no picture")
    request = RunRequest("shop:net", source="pictures", out="out", workers=1, shard_size=1, batch_size=1)
    assert run_and_report(request).report is not None
    summary = run_and_report(replace(request, retry_failed=True, fail_fast=True))
    assert (summary.pictures, summary.failed, summary.left, summary.before) == (4, 1, 1, 3)
    assert [problem.partition(":")[0] for problem in summary.problems] == ["a.png"]
    assert (summary.exit_status, summary.report) == (1, None)


def test_a_method_in_another_precision_is_another_method() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    explain(methods=("shop:Rounded",))
    sys.modules["shop"].precision = torch.bfloat16  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match=r'different methods\.Rounded\.dtype: null before, "torch\.bfloat16" now'):
        explain(methods=("shop:Rounded",))


def test_the_manifest_says_what_determined_the_rows() -> None:
    disk.write_pictures(Path("pictures"))
    explain(methods=("layer-cam", "grad-cam"), shard_size=5)
    manifest = json.loads(Path("out/run.json").read_text(encoding="utf-8"))
    assert manifest["model"] == "shop:net"
    assert manifest["layers"] == {"layer-cam": ["stage2"], "grad-cam": ["stage2"]}
    assert manifest["transform"]["size"] == [48, 64]
    assert manifest["methods"]["layer-cam"]["gamma"] == 2.0
    assert "batch_size" not in manifest["methods"]["layer-cam"]
    assert list(manifest["methods"]) == ["layer-cam", "grad-cam"]
    assert (manifest["pictures"], manifest["shard_size"], manifest["targets"]) == (7, 5, "predicted")
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (manifest["about"]["source"], manifest["about"]["root"]) == ("pictures", str(Path("pictures").absolute()))
    first = manifest["weights_sha256"]
    torch.save(load_model("shop:net").model.double().state_dict(), "other.pt")
    explain(checkpoint=Path("other.pt"), overwrite=True, batch_size=1)
    again = json.loads(Path("out/run.json").read_text())
    assert again["weights_sha256"] == first  # the same values, by another way
    assert again["checkpoint"] == "other.pt"


def test_a_sheet_has_a_row_per_picture_and_target_and_a_column_per_method() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    disk.write_picture(Path("pictures/b.png"), disk.COFFEE)
    disk.break_pictures(Path("pictures"))
    sizes = []
    for methods, targets in [
        (("grad-cam",), "predicted"),
        (("grad-cam", "layer-cam"), "predicted"),
        (("grad-cam",), "top:2"),
    ]:
        request = SheetRequest(
            "shop:net",
            sources=("pictures",),
            out=Path("sheets/s.png"),
            methods=methods,
            targets=targets,
            overwrite=True,
        )
        summary = render_sheet(request)
        assert (summary.pictures, summary.failed) == (6, 4)
        with Image.open("sheets/s.png") as sheet:
            sizes.append(sheet.size)
    assert sizes[1][0] > sizes[0][0]
    assert sizes[1][1] == sizes[0][1]
    assert sizes[2][1] > 1.8 * sizes[0][1]
    with pytest.raises(PictureError, match=r"no picture could be explained: text.jpg"):
        render_sheet(SheetRequest("shop:net", sources=("pictures/text.jpg",), out=Path("sheets/t.png")))


def test_a_sheet_takes_a_method_of_the_users() -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    summary = render_sheet(
        SheetRequest(
            "demo",
            sources=("pictures",),
            out=Path("own.csv"),
            methods=("grad-cam", "gradcam_kit.methods.layer_cam:LayerCAM"),
        )
    )
    assert summary.failed == 0
    assert "layer-cam" in Path("own.csv").read_text()
