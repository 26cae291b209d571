"""The page about a run is written again when what it tells of has changed, and only then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import disk
import fsspec
import pytest

from gradcam_kit.folder import run_and_report
from gradcam_kit.jobs import EvaluateRequest, RunRequest, evaluate
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.report import page, write_report


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_pictures(Path("pictures"))


def asking(out: str = "out") -> RunRequest:
    return RunRequest("shop:net", source="pictures", out=out, workers=1, overlays=0, shard_size=2)


@pytest.mark.parametrize("out", ["out", "memory://current/out"])
def test_a_failure_that_was_mended_without_a_report_goes_from_the_page(out: str) -> None:
    Path("pictures/broken.png").write_text("no picture")
    assert run_and_report(asking(out)).report is not None
    disk.write_picture(Path("pictures/broken.png"), disk.CAT)
    assert run_and_report(replace(asking(out), retry_failed=True, report=False)).failed == 0
    assert run_and_report(asking(out)).report == f"{out}/report.html"
    with fsspec.open(f"{out}/report.html", "rt") as file:
        assert "not a picture of a known format" not in file.read()
    assert run_and_report(asking(out)).report is None  # nothing has changed since


def test_the_page_of_an_unfinished_run_is_written_again_when_it_is_finished() -> None:
    run_and_report(replace(asking(), part=(1, 2)))
    write_report("out")
    run_and_report(replace(asking(), part=(0, 2), report=False))
    assert run_and_report(asking()).report is not None
    assert "not finished" not in Path("out/report.html").read_text()


def test_what_was_measured_later_comes_into_the_page() -> None:
    run_and_report(asking())
    evaluate(EvaluateRequest("out", metrics=("sparseness",)))
    assert run_and_report(asking()).report is not None
    assert "sparseness" in Path("out/report.html").read_text()


def test_rows_that_come_while_the_page_is_made_make_it_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run_and_report(replace(asking(), report=False))
    last = Path("out/shards/00003.parquet").read_bytes()
    Path("out/shards/00003.parquet").unlink()
    collect = page.collect

    def meanwhile(store: Store, *others: object) -> object:
        found = collect(store, *others)
        store.folder.write("shards/00003.parquet", last)  # as another part would
        return found

    with monkeypatch.context() as patched:
        patched.setattr(page, "collect", meanwhile)
        write_report("out")
    assert not page.is_current("out")


def test_damaged_rows_are_none() -> None:
    run_and_report(asking())
    assert page.is_current("out")
    Path("out/shards/00001.parquet").write_bytes(b"PAR1")
    assert not page.is_current("out")
