"""Works are timed in turns, memory is that of the work alone, and a case that fails is skipped with the reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import measure, methods, peers, ratios
from benchmarks.measure import SkippedError, interleave, memory_bounded, peak_growth, reason
from benchmarks.quality import energies, method_rows, rank_correlations
from benchmarks.report import quality_rows
from benchmarks.results import Figure, Results, Row, load
from benchmarks.suite import attempt, partial_of, record
from benchmarks.works import build_images, build_model
from gradcam_kit.capture.rerun.session import rescoring
from gradcam_kit.demo import collate, draw, load_demo_model

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")


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


def test_convolutions_that_run_with_packed_weights_are_counted():
    model, images = build_model("resnet18"), build_images(2, side=96)
    with rescoring(model, images, torch.zeros(2, dtype=torch.long), batch_size=2) as rescore:
        plain, rows = torch.cat([images] * 4), torch.arange(8) % 2
        runs = interleave({"plain": lambda: model(plain), "rows": lambda: rescore(plain, rows)}, rounds=1)
    assert runs["rows"].flops == runs["plain"].flops


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
    assert "incomplete: the rows" in printed


def test_remarks_are_printed_as_they_are(capsys):
    Results("x", {}, [Row({"work": "w"}, skipped="pip install -e '.[peers]'")]).finish(None)
    assert "'.[peers]'" in capsys.readouterr().out


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
    assert cam.note == "empty heatmaps, which have no share on the object: 2 of 2"
    assert quality_rows(Results("quality", {}, rows)) == [random, chance]
    assert quality_rows(Results("quality", {}, [cam, chance])) == []


def test_rank_correlation_is_spearmans_with_mean_ranks_for_ties():
    first = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [1.0, 2.0]]])
    second = torch.tensor([[[-1.0, -20.0], [-300.0, -4000.0]], [[0.0, 5.0], [6.0, 7.0]]])
    found = rank_correlations(first, second)
    # The second: ranks 1.5, 1.5, 3, 4 and 1, 2, 3, 4; deviations -1, -1, .5, 1.5 and -1.5, -.5, .5, 1.5.
    assert found == pytest.approx([-1, 4.5 / np.sqrt(4.5 * 5)])
