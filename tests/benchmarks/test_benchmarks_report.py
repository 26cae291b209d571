"""What changed between two runs of a benchmark, and the tables and plots that are made of what was stored."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_benchmarks import command
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.compare import changes, differences
from benchmarks.cuda import ALONE
from benchmarks.report import BEGIN, END, between_markers
from benchmarks.report import run as report
from benchmarks.results import RESULTS, ROOT, Figure, Results, Row, load

DOCS = ROOT / "docs"

# Comparing


def stored(file: Path, **medians: float) -> Path:
    rows = [
        Row({"work": name}, {"seconds": Figure(value, 0.9 * value, 1.1 * value)}) for name, value in medians.items()
    ]
    file.write_text(
        json.dumps(
            {
                "command": "x",
                "environment": {"processor": file.stem, "rounds": 3, "commit": file.stem, "versions": {"torch": "9"}},
                "rows": [vars(r) for r in rows],
            },
            default=vars,
        )
    )
    return file


def test_changes_beyond_the_spread_are_marked(tmp_path):
    old = stored(tmp_path / "old.json", same=1.0, slower=1.0, faster=1.0, gone=1.0)
    new = stored(tmp_path / "new.json", same=1.15, slower=1.3, faster=0.5, added=1.0)
    found = {change.case: change for change in changes(load(old), load(new))}
    assert {case: change.mark for case, change in found.items()} == {
        "same": "",
        "slower": "slower",
        "faster": "faster",
        "gone": "gone",
        "added": "new",
    }
    assert found["slower"].ratio == pytest.approx(1.3)
    output = command("compare", str(old), str(new))
    assert "slower" in output
    assert "different processor: " in output
    assert "figures compared: 5, of which 1 within the spread, 1 slower, 1 faster, 1 gone, 1 new" in output


def test_which_way_is_better_depends_on_the_figure():
    marks = {}
    for name in ("ratio", "pictures_per_second", "peak_mb", "energy", "something"):
        both = [Results("x", {}, [Row({"work": "w"}, {name: Figure(v, v, v)})]) for v in (1.0, 2.0)]
        marks[name] = [one.mark for one in (*changes(*both), *changes(*reversed(both)))]
    assert marks == {
        "ratio": ["slower", "faster"],
        "pictures_per_second": ["faster", "slower"],
        "peak_mb": ["more memory", "less memory"],
        "energy": ["better", "worse"],
        "something": ["up", "down"],
    }


def test_settings_that_differ_are_named(tmp_path):
    seen = {"processor": "P", "batch": 16, "rounds": 3, "commit": "a", "versions": {"torch": "8", "numpy": "2"}}
    other = {**seen, "batch": 1, "limit": 2, "commit": "b", "versions": {"torch": "9", "numpy": "2"}}
    found = list(differences(Results("x", seen, []), Results("x", other, [])))
    assert [one.partition(";")[0] for one in found] == [
        "different batch: 16 and 1",
        "different torch: 8 and 9",
        "different limit: None and 2",
    ]


def test_a_figure_without_a_spread_does_not_change_by_a_trifle(tmp_path):
    one, other = Figure(100, 100, 100), Figure(101, 101, 101)
    results = [Results("x", {}, [Row({"work": "w"}, {"peak_mb": figure})]) for figure in (one, other)]
    assert [change.mark for change in changes(*results)] == [""]
    larger = replace(results[1], rows=[Row({"work": "w"}, {"peak_mb": Figure(110, 110, 110)})])
    assert [change.mark for change in changes(results[0], larger)] == ["more memory"]


def test_files_of_another_form_are_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    done = CliRunner().invoke(app, ["compare", str(other), str(other)])
    assert done.exit_code == 2
    assert "does not hold rows" in done.output


# Reporting


def test_the_pages_are_those_of_the_stored_results(tmp_path):
    shutil.copy(DOCS / "cost.md", tmp_path)
    report(RESULTS, tmp_path / "cost.md", tmp_path)
    for name in ("benchmarks.md", "cost.md"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text(), "run `python -m benchmarks report`"


def test_the_report_is_made_of_what_was_stored(tmp_path):
    folder, docs, summary = tmp_path / "results", tmp_path / "docs", tmp_path / "cost.md"
    folder.mkdir()
    batches = [
        Row({"model": "resnet50", "batch": n, "dtype": "float32", "method": name}, {"seconds_per_image": f, "ratio": f})
        for n in (1, 8)
        for name, f in (("plain forward", Figure(0.5, 0.5, 0.5)), ("grad-cam", Figure(1.25, 1, 2)))
    ]
    energies = [
        Row({"what": "method", "method": "grad-cam"}, {"ratio": Figure(1.1, 1, 2), "energy": Figure(0.5, 0.4, 0.6)}),
        Row({"what": "method", "method": "chance"}, {"energy": Figure(0.1, 0.1, 0.1)}),
    ]
    costs = {"seconds": Figure(2, 1, 3), "ratio": Figure(0.987, 0.9, 1.1)}
    ratios = [
        Row({"model": "m", "work": "GradCAM, layer4"}, costs, beside="plain forward of 3 images"),
        Row({"model": "m", "work": "memory of GradCAM"}, {"peak_mb": Figure(1, 1, 1)}),
        Row({"model": "m", "work": "ScoreCAM"}, skipped="no time"),
    ]
    case = {"method": "grad-cam", "model": "m", "batch": 2}
    figures = {"ratio": Figure(0.31, 0.3, 0.4), "difference": Figure(2e-7, 2e-7, 2e-7)}
    peers = [
        Row({**case, "peer": "captum"}, figures, note="a note"),
        Row({**case, "peer": "torch-cam"}, skipped="not installed"),
    ]
    seen = {"processor": "P", "device": "cpu", "threads": 2, "versions": {"torch": "9"}, "commit": "abc"}
    for name, rows in {"methods": batches, "quality": energies, "ratios": ratios, "peers": peers}.items():
        Results(name, seen, rows).finish(folder / f"{name}-cpu.json")
    (folder / "other.json").write_text("{}")  # results of another form are left to their own page
    summary.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["report", "--results", str(folder), "--summary", str(summary), "--docs", str(docs)]

    command(*arguments)
    first = {path.name: path.read_bytes() for path in (summary, *docs.iterdir())}
    text = summary.read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| m | GradCAM, layer4 | 2 | plain forward of 3 images | 0.99 |" in text
    assert "Skipped: m, ScoreCAM (no time)." in text
    assert "memory of GradCAM" not in text
    assert "| grad-cam | m, batch 2 |  |  | 0.31 (2e-07) |" in text
    assert "](docs/cost-quality.svg)" in text
    assert "](docs/cost-batch.svg)" in text
    page = (docs / "benchmarks.md").read_text()
    assert "| grad-cam | 1.25 |" in page
    assert "a note" in page
    assert "torch-cam: not installed" in page
    assert all(b"<svg" in first[name] for name in ("cost-quality.svg", "cost-batch.svg"))

    command(*arguments)
    assert {path.name: path.read_bytes() for path in (summary, *docs.iterdir())} == first


def test_the_report_shows_every_device_that_has_results(tmp_path):
    folder, docs, summary = tmp_path / "results", tmp_path / "docs", tmp_path / "cost.md"
    seconds, one, half = {"seconds": Figure(2, 2, 2)}, Figure(1, 1, 1), Figure(0.5, 0.5, 0.5)
    cost = [Row({"model": "m", "work": "GradCAM"}, {**seconds, "ratio": half}, beside="plain forward")]
    waits = [Row({"work": f"{name} {ALONE}"}, {"share": share}) for name, share in (("a-cam", one), ("b-cam", half))]
    case = {"model": "resnet50", "dtype": "float32", "method": "grad-cam"}
    batches = [Row({**case, "batch": n}, {"seconds_per_image": one, "ratio": one}) for n in (1, 8)]
    energies = [Row({"what": "method", "method": "grad-cam"}, {"ratio": one, "energy": half})]
    rows = {"ratios": cost, "cuda": [*cost, *waits], "methods": batches, "quality": energies}
    for device in ("cpu", "cuda"):
        seen = {"processor": "P", "device": "cpu" if device == "cpu" else "G", "threads": 2, "versions": {"torch": "9"}}
        for name in rows if device == "cuda" else ("ratios", "quality"):
            Results(name, {**seen, "commit": "abc"}, rows[name]).save(folder / f"{name}-{device}.json")
    summary.write_text(f"{BEGIN}\n{END}\n")
    command("report", "--results", str(folder), "--summary", str(summary), "--docs", str(docs))
    text = summary.read_text()
    assert text.count("| m | GradCAM | 2 | plain forward | 0.50 |") == 3
    assert text.count("(P, 2 threads, torch 9):") == 2
    assert text.count("(G, 2 threads, torch 9):") == 4
    assert "Calls of 1 of 2 methods wait for the device only at their end; not those of b-cam." in text
    plots = {path.name for path in docs.glob("*.svg")}
    assert plots == {"cost-quality.svg", "cost-quality-cuda.svg", "cost-batch-cuda.svg"}
    assert all(f"](docs/{name})" in text for name in plots)


def test_a_page_without_markers_is_left_alone():
    with pytest.raises(Exception, match="once each"):
        between_markers("no markers", "block")
    with pytest.raises(Exception, match="once each"):
        between_markers(f"{END} {BEGIN}", "block")
