"""The networks and data whose right answer is known: the truth holds, and what is claimed of the methods too."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from benchmarks.ground_truth import command, figure, rewrite, run, scoring, table, tokens, wired
from benchmarks.ground_truth.networks import Gated, Grid, Wired, half_blind
from benchmarks.ground_truth.scoring import DRAWS, TRUTHS, Column, Found, Plan, Subject, score_all, share
from benchmarks.ground_truth.series import walks
from benchmarks.ground_truth.shortcut import pictures
from benchmarks.ground_truth.uncertainty import Cell
from gradcam_kit import FullGrad, GradCAM, HiResCAM, RandomCAM
from gradcam_kit.errors import CaptureError
from gradcam_kit.metrics import BASELINES

PLAN = Plan(("grad-cam", "hires-cam", "layer-cam", "grad-cam++", "score-cam", "eigen-cam", "legrad"), scale=0.5)


@pytest.fixture(scope="module")
def columns() -> dict[str, Found]:
    """What is wired by hand, with the images of three networks where they are drawn."""
    parts: dict[str, list[Found]] = {}
    for test in wired.TESTS:
        for number in range(3 if test.has_networks else 1):
            for name, found in test.run(PLAN.of_network(number)).items():
                parts.setdefault(name, []).append(found)
    joined = {name: Column.of(found) for name, found in parts.items()}
    return {
        name: Found({row: torch.cat(scores) for row, scores in one.scores.items()}, one.skipped)
        for name, one in joined.items()
    }


def mean(found: Found, row: str) -> float:
    return float(found.scores[row].nanmean())


def test_contributions_are_exact_with_their_sign() -> None:
    images, masks = wired.squares(4, (wired.RED, wired.GREEN, wired.BLUE), 0)
    maps = GradCAM(Wired().eval(), "relu").explain(images, 0).saliency["relu"]
    positions = wired.SIDE**2
    assert torch.allclose(maps, (images[:, 0] - images[:, 1]) / positions)
    assert (maps[masks[0]] > 0).all()
    assert (maps[masks[1]] < 0).all()
    assert (maps[masks[2]] == 0).all()


def test_methods_that_know_the_class_find_its_evidence_and_others_do_not(columns: dict[str, Found]) -> None:
    found = columns["signs"]
    for row in ("grad-cam", "hires-cam", "layer-cam", "grad-cam++"):
        assert torch.allclose(found.scores[row], torch.ones(12)), row
    assert mean(found, "eigen-cam") < 0.6
    assert mean(found, "score-cam") > 0.9


def test_gates_compute_what_they_say() -> None:
    images, _ = wired.squares(1, (wired.RED, wired.GREEN), 0, low=1.0)
    red, green = images.clone(), images.clone()
    red[:, 1], green[:, 0] = 0, 0
    both = torch.cat([images, red, green, 0 * images])
    assert torch.allclose(Gated("and", wired.SQUARE**2)(both)[:, 0], torch.tensor([8.0, 0, 0, 0]), atol=1e-5)
    assert torch.allclose(Gated("or", wired.SQUARE**2)(both)[:, 0], torch.tensor([8.0, 8, 8, 0]), atol=1e-5)


def test_where_one_of_two_is_enough_gradients_are_empty(columns: dict[str, Found]) -> None:
    for row in ("grad-cam", "hires-cam", "layer-cam", "grad-cam++"):
        assert columns["and"].scores[row].min() > 0.7, row
        assert torch.isnan(columns["or"].scores[row]).all(), row
    assert mean(columns["or"], "score-cam") > 0.5


def test_what_cannot_matter_is_dark_for_pointwise_gradients_and_not_for_averaged_ones(
    columns: dict[str, Found],
) -> None:
    found = columns["blind half"]
    for row in ("hires-cam", "layer-cam"):
        assert torch.allclose(found.scores[row], torch.ones(12)), row
    chance = mean(found, "ones")
    for row in ("grad-cam", "grad-cam++", "score-cam", "eigen-cam"):
        assert mean(found, row) < 0.9, row
        assert abs(mean(found, row) - chance) < 0.2, row


def test_the_lower_half_cannot_matter() -> None:
    model, images = half_blind(0), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[:, :, wired.SIDE // 2 + wired.MARGIN :] = 5.0
    assert torch.equal(model(changed), model(images))
    changed[:, :, wired.SIDE // 2 - 1] = 5.0
    assert not torch.allclose(model(changed), model(images), atol=1e-3)


@pytest.mark.parametrize("isolated", [True, False])
def test_a_cell_gets_evidence_from_its_own_positions(isolated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    head = nn.Linear(6, 5)
    with torch.no_grad():
        for parameter in (*body.parameters(), *head.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model, mosaics = Grid(body, head, isolated=isolated), torch.randn(2, 3, 16, 16, generator=generator)
    changed = mosaics.clone()
    changed[:, :, 8:, 9:] = 0
    cells = [(model(one)).unflatten(1, (4, 5)) for one in (mosaics, changed)]
    assert torch.allclose(cells[0][:, 0], cells[1][:, 0])
    assert torch.equal(cells[0][:, 1], cells[1][:, 1]) == isolated  # its receptive field ends at the border
    assert not torch.allclose(cells[0][:, 3], cells[1][:, 3])
    one = mosaics[:, :, :8, 8:]
    if isolated:
        assert torch.allclose(cells[0][:, 1], head(body(one).mean((2, 3))), atol=1e-6)
    maps = HiResCAM(model, "joint").explain(mosaics, 5 * 1 + 2).saliency["joint"]
    assert maps[:, :8, 8:].abs().amin(0).max() > 0
    outside = maps.clone()
    outside[:, :8, 8:] = 0
    assert not outside.any()
    if isolated:
        with pytest.raises(CaptureError, match="a Conv2d with a bias ran on 8 rows for 2 images"):
            FullGrad(model)(mosaics, 0)


def test_baselines_have_the_chance_level() -> None:
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(24, 32, 32, dtype=torch.bool)
    for i in range(24):
        masks[i, i : i + 8, 4:20] = True
    found = score_all(Subject(Wired().eval(), "relu", images, torch.zeros(24).long(), masks), Plan(()))
    assert list(found.scores) == list(BASELINES)
    assert torch.allclose(found.scores["ones"], masks.flatten(1).float().mean(1))
    assert mean(found, "random") == pytest.approx(128 / 1024, abs=0.01)


def test_deletion_follows_the_order_of_the_map_and_has_the_mask_as_rows() -> None:
    square, framed = (
        next(test for test in tokens.TESTS if test.name == f"transformer{name}") for name in ("", ", ignored")
    )
    plan = Plan(("balanced-cam", "hires-cam"), scale=0.25)
    found = square.run(plan)
    assert set(found) == {"transformer", "transformer, deletion"}
    fallen = found["transformer, deletion"]
    assert set(fallen.scores) == {"balanced-cam", "hires-cam", *TRUTHS, *BASELINES} - {"ones"}
    for row in TRUTHS:
        assert mean(fallen, row) < mean(fallen, "random") - 0.2
    assert mean(fallen, "balanced-cam") < mean(fallen, "hires-cam")
    assert mean(found["transformer"], "balanced-cam") > 0.4, "of shares, more is better"
    assert fallen.notes["accuracy"] == found["transformer"].notes["accuracy"]
    assert set(framed.run(replace(plan, scale=0.1))) == {"transformer, ignored"}


def test_deletion_is_that_of_a_loop() -> None:
    class FirstPixel(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 20 * torch.stack([images[:, 0, 0, 0], torch.full((len(images),), 0.5)], 1)

    images, order = torch.ones(2, 3, 32, 32), torch.linspace(1, 0, 1024).view(1, 32, 32)
    subject = Subject(FirstPixel(), "", images, torch.tensor([0, 0]), torch.zeros(2, 32, 32))
    first, last = tokens._fall_of_score(subject)(torch.cat([order, 1 - order]), subject.masks)
    assert first == pytest.approx(1 / 32 / 2, abs=1e-3), "the pixel goes in the first of 32 steps"
    assert last == pytest.approx(1 - 1 / 32 / 2, abs=1e-3), "or in the last"


def test_columns_of_deletion_neither_order_rows_nor_are_in_the_figure(tmp_path, monkeypatch) -> None:
    cells = {
        "a": {"good": Cell(0.9, 0.8, 1.0, 9, 0), "bad": Cell(0.1, 0.0, 0.2, 9, 0), "ones": Cell(0.1, 0.1, 0.1, 9, 0)},
        "a, deletion": {
            "good": Cell(0.1, 0.0, 0.2, 9, 0), "bad": Cell(0.9, 0.8, 1.0, 9, 0), "true mask": Cell(0.1, 0.1, 0.1, 9, 0)
        },
    }  # fmt: skip
    assert table.rows_of(cells) == ["good", "bad", "true mask", "ones"]
    drawn = []
    monkeypatch.setattr(figure, "rows_of", lambda shown: drawn.append(list(shown)) or table.rows_of(shown))
    figure.draw(cells, tmp_path / "figure.png")
    assert drawn == [["a"]]


def test_what_is_random_is_the_mean_of_several_draws() -> None:
    images, masks = wired.squares(3, (wired.RED, wired.GREEN, wired.BLUE), 0)
    subject = Subject(Wired().eval(), "relu", images, torch.zeros(3).long(), masks[0])
    found = score_all(subject, Plan(("random-cam",), seed=7))
    drawn = [share(BASELINES["random"](images, 7 + draw, torch.arange(3)), masks[0]) for draw in range(DRAWS["random"])]
    assert torch.allclose(found.scores["random"], torch.stack(drawn).mean(0))
    assert found.notes["draws"]["random"] == pytest.approx([float(one.mean()) for one in drawn])
    maps = [share(RandomCAM(subject.model, "relu", seed=7 + draw)(images, 0), masks[0]) for draw in range(5)]
    assert torch.allclose(found.scores["random-cam"], torch.stack(maps).nanmean(0), equal_nan=True)


def test_methods_that_do_not_apply_say_why(columns: dict[str, Found]) -> None:
    for name, found in columns.items():
        assert set(found.scores) | set(found.skipped) == {*PLAN.methods, *BASELINES}, name
        assert "attention" in found.skipped["legrad"]


def test_several_targets_are_measured_each_with_its_own_mask() -> None:
    images, masks = wired.squares(3, (wired.RED, wired.GREEN), 0)
    targets = torch.tensor([[0, 1]] * 3)
    subject = Subject(Wired().eval(), "relu", images, targets, masks.transpose(0, 1))
    found = score_all(subject, Plan(("grad-cam",)), share)
    assert found.scores["grad-cam"].shape == found.scores["ones"].shape == (3, 2)
    assert torch.allclose(found.scores["grad-cam"], torch.ones(3, 2))


def test_pictures_with_and_without_the_patch_differ_in_it_alone() -> None:
    plain, patched, labels, masks = pictures(20, 0)
    assert masks.flatten(1).sum(1).eq(25).all()
    assert torch.equal((plain != patched).any(1), masks)
    assert labels.sum() == 10


def test_the_pattern_is_where_the_mask_says() -> None:
    series, labels, masks = walks(20, 0)
    assert torch.equal(masks.flatten(1).any(1), labels == 1)
    assert masks.any(2).sum(1).max() == 1
    assert series.shape == masks.shape


def test_table_orders_methods_and_marks_what_is_missing() -> None:
    def column(**means: float) -> dict[str, Cell]:
        return {row: Cell(value, value, value, 0 if math.isnan(value) else 3, 0) for row, value in means.items()}

    cells = {"a": column(good=0.9, bad=0.2, ones=0.1), "b": column(good=0.8, bad=math.nan, ones=0.1),
             "c": column(good=0.8, seldom=0.9, bad=0.1)}  # fmt: skip
    assert table.rows_of(cells) == ["good", "bad", "seldom", "ones"]
    lines = table.markdown(cells).splitlines()
    assert lines[3] == "| bad | 0.20 [0.20, 0.20] | empty | 0.10 [0.10, 0.10] |"
    assert lines[4] == "| seldom | – | – | 0.90 [0.90, 0.90] |"
    assert lines[-1] == "| *pictures, networks* | *3, 1* | *3, 1* | *3, 1* |"


def test_table_says_which_networks_count_and_how_often_they_are_right() -> None:
    accuracies = (1.0, 0.5, 0.9, 0.8)
    found = [Found({"good": torch.full((6, 2), one)}, notes={"accuracy": one}) for one in accuracies]
    columns = {"a": Column.of(found), "b": Column.of([Found({"good": torch.ones(6)})])}
    assert [float(one.mean()) for one in columns["a"].scores["good"]] == pytest.approx([1.0, 0.9])
    assert columns["a"].accuracies_left_out == [0.5, 0.8]
    lines = table.markdown(table.cells_of(columns, 0), found=columns).splitlines()
    assert lines[-2] == "| *pictures, networks* | *12, 2 of 4* | *6, 1* |"
    assert lines[-1] == "| *accuracy* | *0.90–1.00 (left out: 0.50–0.80)* | *–* |"
    nobody = Column.of(found[1:2])
    assert (nobody.accuracies, nobody.left_out) == ([0.5], [])
    [out, _] = table.records(columns, table.cells_of(columns, 0))["a"]["left out"]
    assert out == {"accuracy": 0.5, "scores": {"good": 0.5}}


def test_rows_that_saw_fewer_pictures_say_how_many_and_few_have_no_interval() -> None:
    columns = {"a": Column.of([Found({"quick": torch.linspace(0, 1, 6), "slow": torch.ones(2)})])}
    lines = table.markdown(table.cells_of(columns, 0)).splitlines()
    assert lines[2:4] == ["| slow | 1.00 (n = 2) |", "| quick | 0.50 [0.11, 0.89] |"]


def test_table_says_which_share_of_the_maps_is_empty() -> None:
    assert table.text(Cell(0.5, 0.4, 0.6, 6, 2, empty_maps=0.25)) == "0.50 [0.40, 0.60] (25 % empty)"
    assert table.text(Cell(0.5, 0.4, 0.6, 9, 0, empty_maps=0.001), interval=False) == "0.50 (1 % empty)"
    assert table.text(Cell(0.5, 0.4, 0.6, 6, 2, empty_maps=0.25), pictures=9) == "0.50 [0.40, 0.60] (n = 8, 25 % empty)"
    assert table.text(Cell(0.5, 0.4, 0.6, 6, 0), interval=False) == "0.50"


def test_what_is_not_shown_neither_orders_rows_nor_changes_a_sign() -> None:
    def cell(value: float) -> Cell:
        return Cell(value, value, value, 3, 0)

    cells = {"a": {"first": cell(0.501), "second": cell(0.503)}, "b": {"first": cell(-0.001), "second": cell(0.001)}}
    assert table.rows_of(cells) == ["first", "second"]
    assert table.markdown(cells, interval=False).splitlines()[2:4] == [
        "| first | 0.50 | 0.00 |",
        "| second | 0.50 | 0.00 |",
    ]


def test_only_the_gate_whose_maps_are_meant_to_be_empty_is_silent(caplog) -> None:
    with caplog.at_level(logging.WARNING, "gradcam_kit"):
        wired.gates(Plan(("grad-cam",), scale=0.1))
        assert not caplog.records
        with wired.expecting_empty_maps():
            logging.getLogger("gradcam_kit").warning("something else")
        GradCAM(Wired().eval(), "relu")(torch.zeros(2, 3, 8, 8), 0)
    assert [record.getMessage()[:30] for record in caplog.records] == [
        "something else",
        "GradCAM found no positive evid",
    ]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder in place of the checkout, with one quick test."""

    def found(plan: Plan) -> dict[str, Found]:
        return {"column": Found({"grad-cam": torch.rand(4), "ones": torch.rand(4)})}

    monkeypatch.setattr(command, "TESTS", (scoring.Test("column", "what?", "share", found),))
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "_FIGURE", tmp_path / "docs" / "ground-truth.png")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "where-right.md").write_text(
        "\n".join(["before", *command._MARKERS, *command._OF_CONCLUSIONS, "after"])
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("", ["docs/ground-truth.md", "docs/ground-truth.png", "docs/where-right.md", "results/ground-truth.json"]),
        (
            "--networks 5",
            ["docs/ground-truth.md", "docs/ground-truth.png", "docs/where-right.md", "results/ground-truth.json"],
        ),
        ("--out {0}/mine/found.json", ["mine/found.json"]),
        ("--figure {0}/mine/found.png", ["mine/found.md", "mine/found.png"]),
        ("--quick", []),
        ("--seed 1", []),
        ("--networks 4", []),
        ("--method grad-cam", []),
    ],
)
def test_command_rewrites_what_is_stored_only_in_a_whole_run_and_says_so(checkout, arguments, written) -> None:
    before = (checkout / "docs" / "where-right.md").read_text()
    app = typer.Typer()
    app.command()(run)
    done = CliRunner().invoke(app, arguments.format(checkout).split())
    assert done.exit_code == 0, done.output
    named = [line.removeprefix("written to ") for line in done.output.splitlines() if line.startswith("written to ")]
    assert sorted(named) == [str(checkout / path) for path in written]
    assert all((checkout / path).exists() for path in written)
    after = (checkout / "docs" / "where-right.md").read_text()
    assert ("| grad-cam |" in after) == (after != before) == ("docs/where-right.md" in written)
    left = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    assert left == {"docs/where-right.md", *written}


def test_pages_are_written_again_from_what_is_stored(checkout) -> None:
    for function in (run, rewrite):
        app = typer.Typer()
        app.command()(function)
        done = CliRunner().invoke(app, [])
        assert done.exit_code == 0, done.output
        pages = {path: path.read_bytes() for path in (checkout / "docs").iterdir()}
        if function is run:
            first = pages
            (checkout / "docs" / "ground-truth.md").unlink()
            (checkout / "docs" / "ground-truth.png").unlink()
            page = checkout / "docs" / "where-right.md"
            page.write_text(page.read_text().replace("| grad-cam |", "| another |"))
    assert pages == first


@pytest.mark.parametrize(
    ("arguments", "file"),
    [("--out", "found.json"), ("--figure", "found.png"), ("--figure", "found.md")],
)
def test_command_replaces_files_of_others_only_when_told(checkout, arguments, file) -> None:
    mine = checkout / file
    mine.write_text("mine")
    target = checkout / ("found.json" if arguments == "--out" else "found.png")
    app = typer.Typer()
    app.command()(run)
    done = CliRunner().invoke(app, [arguments, str(target)])
    assert done.exit_code == 2
    assert "did not write it; add --overwrite" in " ".join(done.output.replace("│", " ").split())
    assert mine.read_text() == "mine"
    assert {path.name for path in checkout.iterdir()} == {"docs", file}
    for again in (["--overwrite"], []):  # what it wrote itself is replaced without a word
        done = CliRunner().invoke(app, [arguments, str(target), *again])
        assert done.exit_code == 0, done.output
    assert mine.read_bytes() != b"mine"


def test_command_prints_and_writes(tmp_path) -> None:
    out = tmp_path / "found.json"
    app = typer.Typer()
    app.command()(run)
    done = CliRunner().invoke(app, ["--quick", "--only", "gates", "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert set(found["columns"]) == {"and", "or"}
    assert found["columns"]["and"]["scores"]["grad-cam"]["mean"] > 0.9
    assert "attention" in found["columns"]["and"]["skipped"]["attention-rollout"]
    assert "empty" in done.output
    wrong = CliRunner().invoke(app, ["--only", "gate"])
    assert wrong.exit_code == 2
    assert "unknown tests" in wrong.output
    wrong = CliRunner().invoke(app, ["--quick", "--only", "gates", "--method", "grad-cma"])
    assert wrong.exit_code == 2
    assert "did you mean 'grad-cam'" in wrong.output
