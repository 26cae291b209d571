"""The benchmarks run, say why they skip what they skip, and their tables and plots are made of what they stored."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import measure, methods, peers, ratios, results
from benchmarks.__main__ import app
from benchmarks.compare import changes, differences
from benchmarks.cuda import ALONE
from benchmarks.measure import SkippedError, interleave, memory_bounded, peak_growth, reason
from benchmarks.quality import energies, method_rows, rank_correlations
from benchmarks.report import BEGIN, END, between_markers, quality_rows
from benchmarks.results import Figure, Results, Row, load
from benchmarks.suite import attempt, partial_of, record
from gradcam_kit.demo import collate, draw, load_demo_model

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def command(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


def quick(name: str, folder: Path) -> Results:
    command(name, "--quick", *(() if name == "cuda" else ("--threads", "1")), "--out", str(folder / f"{name}-cpu.json"))
    return load(folder / f"{name}-cpu.json")


def one(rows: list[Row]) -> Row:
    [row] = rows
    return row


# Measuring


def test_works_are_interleaved_after_one_call_each_that_is_not_timed():
    calls = []
    runs = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or "b's"}, rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]  # also what takes long, unless that is asked for
    assert len(runs["a"].times) == len(runs["b"].times) == 2
    assert runs["b"].result == "b's"


def test_passes_are_operations_over_those_of_the_baseline():
    matrix = torch.ones(8, 8)
    runs = interleave({"one": lambda: matrix @ matrix, "three": lambda: matrix @ matrix @ matrix @ matrix}, rounds=1)
    assert runs["one"].flops == 2 * 8**3
    assert runs["three"].passes(runs["one"]).median == 3


def test_ratios_are_taken_round_by_round():
    runs = interleave({"a": int, "b": int}, rounds=1)
    runs["a"].times, runs["b"].times = [1.0, 20.0, 3.0], [2.0, 10.0, 3.0]
    assert runs["a"].over(runs["b"]) == Figure(1.0, 0.5, 2.0)


def test_a_work_that_fails_or_takes_too_long_is_skipped_with_the_reason_and_the_others_go_on():
    def endless():
        while True:
            torch.ones(1000).sum()

    def too_large():
        torch.empty(2**60)

    def broken():
        raise ValueError("no such thing\nand more")

    runs = interleave({"endless": endless, "too large": too_large, "broken": broken, "good": int}, 1, limit=0.05)
    assert "more than 0.05 s" in runs["endless"].skipped
    assert runs["too large"].skipped.startswith("too little memory")
    assert runs["broken"].skipped == "ValueError: no such thing"
    assert runs["good"].times
    assert not runs["good"].skipped


def allocating(megabytes: int):
    return lambda: torch.ones(megabytes, 2**18)


def failing():
    raise SkippedError("not here")


@LINUX
def test_peak_memory_is_that_of_the_work_alone():
    ballast = torch.ones(128, 2**18)  # what this process holds must not count
    assert 60 < peak_growth("cpu", allocating, 64).median < 80
    assert peak_growth("cpu", allocating, 1).median < 16
    assert ballast.sum() > 0


@LINUX
def test_a_failure_in_the_fresh_process_comes_back():
    with pytest.raises(SkippedError, match=r"^not here$"):
        peak_growth("cpu", failing)


@LINUX
def test_an_allocation_beyond_the_memory_at_hand_fails_instead_of_being_promised():
    import resource

    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kilobytes = int(meminfo["MemAvailable"].split()[0])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_bounded():
        run = interleave({"large": lambda: torch.empty(int(1.15 * kilobytes), 256)}, 1)["large"]  # never touched
    assert run.skipped.startswith("too little memory")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_reasons_are_one_line():
    assert reason(RuntimeError("[enforce fail] can't allocate memory: 9 bytes\ntrace")).startswith("too little memory")
    assert reason(SkippedError("because")) == "because"


# The suite


def rows_of(fails: BaseException) -> Iterator[Row]:
    def failing() -> Iterator[Row]:
        yield Row({"work": "first"}, {"seconds": Figure(1, 1, 1)})
        raise fails

    yield from attempt({"work": "second"}, failing)
    yield Row({"work": "third"}, {"seconds": Figure(3, 3, 3)})


@pytest.mark.parametrize("error", [ValueError("no"), OSError("no"), torch.OutOfMemoryError("no")])
def test_a_case_that_fails_is_skipped_with_the_reason_and_the_suite_goes_on(tmp_path, error):
    place = tmp_path / "x.json"
    record("x", "cpu", rows_of(error), out=place, seed=0)
    first, second, third = load(place).rows
    assert first.figures
    assert third.figures
    assert second.case == {"work": "second"}
    assert second.skipped == reason(error)
    assert "no" in second.skipped
    assert list(tmp_path.iterdir()) == [place]


def test_what_is_measured_before_an_interruption_is_kept_beside_earlier_results(tmp_path, capsys):
    place = tmp_path / "x.json"
    place.write_text("earlier")
    with pytest.raises(KeyboardInterrupt):
        record("x", "cpu", rows_of(KeyboardInterrupt()), out=place)
    assert place.read_text() == "earlier"
    assert [row.case["work"] for row in load(partial_of(place)).rows] == ["first"]
    assert sorted(tmp_path.iterdir()) == [place, partial_of(place)]
    printed = capsys.readouterr().out
    assert "first" in printed
    assert "not complete" in printed


def test_remarks_are_printed_as_they_are(capsys):
    Results("x", {}, [Row({"work": "w"}, skipped="pip install 'gradcam-kit[peers]'")]).finish(None)
    assert "'gradcam-kit[peers]'" in capsys.readouterr().out


@pytest.mark.parametrize("build", [ratios.memory_rows, lambda device, batch: peers.memory_rows(peers.QUICK[0], device)])
def test_without_proc_the_memory_is_skipped_with_the_reason(monkeypatch, tmp_path, build):
    monkeypatch.setattr(measure, "_STATUS", tmp_path / "none")
    rows = list(build("cpu", 1))
    assert len(rows) >= 4
    assert all("from /proc, which this system lacks" in row.skipped for row in rows)


@LINUX
def test_the_memory_is_that_of_the_asked_precision():
    plan = methods.Plan(("resnet18",), ("grad-cam",), dtypes=("bfloat16",), side=64, times=False, memory=True)
    rows = list(methods.measured(plan, "cpu", 1))
    assert [row.case["method"] for row in rows] == ["plain forward", "grad-cam"]
    assert all(row.case["dtype"] == "bfloat16" and row.figures["peak_mb"].median > 0 for row in rows)


def test_what_is_timed_once_says_so(monkeypatch):
    plan = methods.Plan(("resnet18",), ("grad-cam",), side=32)
    assert {row.note for row in methods.measured(plan, "cpu", 2)} == {""}
    monkeypatch.setattr(methods, "LIMIT", 0)
    assert {row.note for row in methods.measured(plan, "cpu", 2)} == {"timed once"}


# Quality


def test_energy_is_the_share_on_the_object_of_maps_that_are_not_empty():
    heatmaps = torch.tensor([[[1.0, 1.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[True, False], [False, True]]] * 2)
    assert energies(heatmaps, masks) == [0.75]


def test_heatmaps_that_are_all_empty_have_no_energy_and_say_so():
    model, batch = load_demo_model(), collate([draw(0), draw(1)])
    torch.nn.init.zeros_(model.fc.weight)
    rows = list(method_rows(model, batch, ["grad-cam", "random-cam"], 1, 60))
    cam, random, chance = rows
    assert set(cam.figures) == {"seconds_per_image", "ratio", "passes"}
    assert cam.note == "2 of 2 heatmaps are empty, and have no share on the object"
    assert quality_rows(Results("quality", {}, rows)) == [random, chance]
    assert quality_rows(Results("quality", {}, [cam, chance])) == []


def test_rank_correlation_is_spearmans_with_mean_ranks_for_ties():
    first = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [1.0, 2.0]]])
    second = torch.tensor([[[-1.0, -20.0], [-300.0, -4000.0]], [[0.0, 5.0], [6.0, 7.0]]])
    found = rank_correlations(first, second)
    # The second: ranks 1.5, 1.5, 3, 4 and 1, 2, 3, 4; deviations -1, -1, .5, 1.5 and -1.5, -.5, .5, 1.5.
    assert found == pytest.approx([-1, 4.5 / np.sqrt(4.5 * 5)])


# Commands


def test_methods(tmp_path):
    results = quick("methods", tmp_path)
    plain = one(results.where(method="plain forward", what="memory"))
    cam = one([row for row in results.where(method="grad-cam") if "what" not in row.case])
    assert set(cam.figures) == {"seconds_per_image", "ratio", "passes"}
    assert 1 <= cam.figures["passes"].median < 1.1
    skipped = [row.skipped for row in results.rows if row.case["method"] == "attention-rollout"]
    assert all("no attention" in text for text in skipped)
    assert len(skipped) == 2
    if sys.platform.startswith("linux"):
        assert one(results.where(method="grad-cam", what="memory")).figures["peak_mb"].median > 0
        assert plain.figures["peak_mb"].median > 0
    seen = results.environment
    assert seen["seed"] == 0
    assert {"processor", "cores", "threads", "python", "versions", "commit"} <= set(seen)
    assert seen["versions"]["torch"] == torch.__version__.partition("+")[0] or seen["versions"]["torch"]


@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_peers(tmp_path):
    results = quick("peers", tmp_path)
    assert {row.case["peer"] for row in results.rows} == {"pytorch-grad-cam", "torch-cam", "captum"}
    for row in results.rows:
        if row.skipped:
            assert "pip install" in row.skipped
            continue
        assert row.figures["ratio"].median > 0
        assert row.figures["difference"].median < 1e-3, row
        assert row.figures["difference_earlier"].median < 1e-5, row


def test_a_peer_that_is_not_installed_is_skipped_with_what_to_do(tmp_path, monkeypatch):
    for module in ("pytorch_grad_cam", "torchcam.methods", "captum.attr"):
        monkeypatch.setitem(sys.modules, module, None)
    results = quick("peers", tmp_path)
    assert results.rows
    assert all("is not installed: pip install 'gradcam-kit[peers]'" in row.skipped for row in results.rows)


@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize("hidden", [(), ("quantus", "pytorch_grad_cam.metrics.road")])
def test_metrics_and_those_of_other_libraries(tmp_path, monkeypatch, hidden):
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)
    results = quick("metrics", tmp_path)
    assert {row.case["work"] for row in results.rows} >= {"deletion + insertion", "ROAD, both orders"}
    theirs = [row for row in results.rows if row.case["work"].startswith(("Quantus", "pytorch-grad-cam"))]
    assert len(theirs) == 3
    for row in results.rows:
        assert row.skipped or row.figures["ratio"].median > 0
        assert not row.skipped or row in theirs
    if hidden:
        assert all("is not installed: pip install 'gradcam-kit[peers]'" in row.skipped for row in theirs)


def test_core(tmp_path):
    results = quick("core", tmp_path)
    works = {row.case["work"] for row in results.rows}
    assert works >= {"weighted sum by channel", "normalize heatmaps", "upsample", "overlays"}
    for row in results.rows:
        assert row.figures["ratio"].median > 0
        moved = row.figures["gb_per_s"].median * row.figures["microseconds"].median
        copied = row.figures["copy_gb_per_s"].median * row.figures["microseconds"].median / row.figures["ratio"].median
        assert moved == pytest.approx(copied, rel=1e-6)  # both move the same bytes


def test_quality(tmp_path):
    results = quick("quality", tmp_path)
    cam, random = (one(results.where(method=name)).figures["energy"] for name in ("grad-cam", "random-cam"))
    assert cam.median > random.median
    curve = results.where(what="score-cam")
    assert {row.case["rule"] for row in curve} >= {"std", "gradient"}
    assert all(row.figures["passes"].median < 12 for row in curve)  # 10 of 96 channels, not all


def test_ratios(tmp_path):
    results = quick("ratios", tmp_path)
    ten = one(results.where(work="ten gradient methods, explain_all"))
    assert ten.figures["passes"].median < 1.2  # one pass for all
    assert not [row for row in results.rows if row.skipped]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "methods", "peers", "core", "quality", "ratios"])
def test_without_a_gpu_the_cases_for_one_are_skipped(tmp_path, monkeypatch, name):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    device = () if name == "cuda" else ("--device", "cuda")
    assert "skipped: no CUDA device is at hand" in command(name, *device)
    assert not list(tmp_path.iterdir())  # stored results stay
    command(name, "--quick", *device, "--out", str(tmp_path / "out.json"))
    [row] = load(tmp_path / "out.json").rows
    assert row.skipped == "no CUDA device is at hand"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(tmp_path):
    results = quick("cuda", tmp_path)
    assert one(results.where(work=f"grad-cam {ALONE}")).figures["share"].median == 1


@pytest.mark.parametrize(
    "arguments",
    [("--model", "resnet_18"), ("--method", "gradcam"), ("--dtype", "int8"), ("--device", "tpu")],
)
def test_what_does_not_exist_is_refused_with_what_does(arguments):
    done = CliRunner().invoke(app, ["methods", *arguments])
    assert done.exit_code == 2
    assert arguments[1] in done.output


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
    assert "processor differs" in output
    assert "5 figures: 1 within the spread, 1 slower, 1 faster, 1 gone, 1 new" in output


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
        "batch differs: 16 and 1",
        "torch differs: 8 and 9",
        "limit differs: None and 2",
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


def test_the_report_is_made_of_what_was_stored(tmp_path):
    folder, docs, readme = tmp_path / "results", tmp_path / "docs", tmp_path / "README.md"
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
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["report", "--results", str(folder), "--readme", str(readme), "--docs", str(docs)]

    command(*arguments)
    first = {path.name: path.read_bytes() for path in (readme, *docs.iterdir())}
    text = readme.read_text()
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
    assert {path.name: path.read_bytes() for path in (readme, *docs.iterdir())} == first


def test_the_report_shows_every_device_that_has_results(tmp_path):
    folder, docs, readme = tmp_path / "results", tmp_path / "docs", tmp_path / "README.md"
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
    readme.write_text(f"{BEGIN}\n{END}\n")
    command("report", "--results", str(folder), "--readme", str(readme), "--docs", str(docs))
    text = readme.read_text()
    assert text.count("| m | GradCAM | 2 | plain forward | 0.50 |") == 3
    assert text.count("(P, 2 threads, torch 9):") == 2
    assert text.count("(G, 2 threads, torch 9):") == 4
    assert "Calls of 1 of 2 methods wait for the device at their end alone; not those of b-cam." in text
    plots = {path.name for path in docs.glob("*.svg")}
    assert plots == {"cost-quality.svg", "cost-quality-cuda.svg", "cost-batch-cuda.svg"}
    assert all(f"](docs/{name})" in text for name in plots)


def test_a_readme_without_markers_is_left_alone():
    with pytest.raises(Exception, match="once each"):
        between_markers("no markers", "block")
    with pytest.raises(Exception, match="once each"):
        between_markers(f"{END} {BEGIN}", "block")
