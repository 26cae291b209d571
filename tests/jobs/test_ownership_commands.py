"""Exports, the demo and comparisons replace only what they wrote, and never what they read."""

from __future__ import annotations

from pathlib import Path

import disk
import pytest
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.errors import OptionError
from gradcam_kit.jobs import RunRequest, run
from gradcam_kit.jobs.export import export_run


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    for name in "ab":
        disk.write_picture(Path(f"pictures/{name}.png"), disk.CAT)


def explain() -> None:
    run(RunRequest("shop:net", source="pictures", out="out", workers=1, report=False))


def everything(folder: str = ".") -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("csv", "rows.csv"),
        ("fiftyone", "samples.json"),
        ("fiftyone", "heatmaps/a.png.grad-cam.png"),
        ("coco", "grad-cam.json"),
        ("png", "b.png.grad-cam.png"),
        ("npz", "a.png.grad-cam.npz"),
    ],
)
def test_an_export_replaces_only_exports(to: str, name: str) -> None:
    explain()
    export_run("out", to, "there")
    export_run("out", to, "there")  # its own
    Path("there", name).write_text("mine")
    before = everything("there")
    with pytest.raises(OptionError, match="is not an export to"):
        export_run("out", to, "there")
    assert everything("there") == before
    export_run("out", to, "there", overwrite=True)
    assert Path("there", name).read_bytes() != b"mine"


@pytest.mark.parametrize(("to", "name"), [("csv", "rows.csv"), ("coco", "grad-cam.json")])
def test_an_export_into_the_run_replaces_only_exports(to: str, name: str) -> None:
    explain()
    export_run("out", to)
    export_run("out", to)
    Path("out/export", to, name).write_text("mine")
    with pytest.raises(OptionError, match="is not an export to"):
        export_run("out", to)
    assert Path("out/export", to, name).read_text() == "mine"


def test_the_demo_replaces_only_demos(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradcam_kit.jobs.demos import every as demo

    monkeypatch.setattr(demo, "METHODS", {name: demo.METHODS[name] for name in ("eigen-cam",)})
    Path("shown").mkdir()
    Path("shown/methods.png").write_text("mine")
    with pytest.raises(OptionError, match=r"shown/methods\.png already exists"):
        demo.run_demo(Path("shown"))
    assert everything("shown") == {"shown/methods.png": b"mine"}
    demo.run_demo(Path("shown"), overwrite=True)
    demo.run_demo(Path("shown"))
    with pytest.raises(OptionError, match="cannot be written"):
        demo.run_demo(Path("shop.py"))
    Path("blocked").mkdir()
    Path("blocked/overlays").write_text("mine")
    with pytest.raises(OptionError, match="blocked/overlays exists, but a folder"):
        demo.run_demo(Path("blocked"))
    assert everything("blocked") == {"blocked/overlays": b"mine"}


def test_a_comparison_does_not_write_over_what_it_reads() -> None:
    Path("link.png").symlink_to("pictures/a.png")
    Path("hard.png").hardlink_to("pictures/a.png")
    Path("list.csv").write_text("path\npictures/a.png\n")
    disk.write_picture(Path("masks/a.png"), disk.CAT)
    before, address = everything(), Path("pictures/a.png").resolve().as_uri()
    for source, out in [
        *(("pictures/a.png", out) for out in ("pictures/a.png", "link.png", "hard.png", "masks/a.png")),
        ("list.csv", "list.csv"),
        (address, "pictures/a.png"),
    ]:
        asked = ["compare", source, "--model", "shop:net", "--method", "eigen-cam", "--out", out, "--overwrite"]
        done = CliRunner().invoke(app, [*asked, "--masks", "masks"])
        assert (done.exit_code, "is read by this comparison" in done.output) == (2, True)
    assert everything() == before


@pytest.mark.parametrize("report", [False, True])
def test_overwriting_a_run_removes_no_page_of_others(report: bool) -> None:
    explain()
    Path("out/report.html").write_text("<h1>mine</h1>")
    asked = ["run", "pictures", "--model", "shop:net", "--out", "out", "--workers", "1", "--overwrite"]
    done = CliRunner().invoke(app, asked if report else [*asked, "--no-report"])
    assert done.exit_code == 0
    assert (Path("out/report.html").read_text() == "<h1>mine</h1>") is not report  # replaced where it was asked for
