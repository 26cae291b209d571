"""`gradcam-kit doctor` as a user types it: what it finds in models and folders, says, writes and exits with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import disk
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.demo import CLASS_NAMES, draw
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.work.examined import classes_of

FEW = ("--steps", "2", "--batch-size", "8")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def doctor(*arguments: str) -> tuple[int, str, str, list[dict[str, Any]]]:
    """Exit status, standard output and error, and the findings that were written."""
    result = CliRunner().invoke(app, ["doctor", *arguments, "--out", "out"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    file = Path("out/doctor.json")
    found = json.loads(file.read_text(), parse_constant=pytest.fail)["findings"] if file.exists() else []
    return result.exit_code, result.stdout, result.stderr, found


def save(seed: int, place: str, label: str | None = None, **options: Any) -> None:
    sample = draw(seed)
    path = Path(place.format(label or CLASS_NAMES[sample.label]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(options.pop("pixels", sample.picture)).save(path, **options)


def healthy(n: int = 20, folder: str = "data") -> None:
    for i in range(n):
        save(2_000_000 + i, folder + f"/{{}}/{i:02}.png")


def test_each_fault_of_a_folder_is_named() -> None:
    healthy()
    for i in range(4):
        save(2_100_000 + i, f"test/{{}}/t{i}.png")
    save(2_000_005, "test/{}/copy.png")
    save(2_000_003, "test/{}/smaller.jpg", quality=75)
    other = CLASS_NAMES[(draw(2_000_007).label + 3) % 8]
    save(2_000_007, "data/{}/twice.png", label=other)
    wrong = CLASS_NAMES[(draw(2_000_100).label + 1) % 8]
    save(2_000_100, "data/{}/wrong.png", label=wrong)
    save(2_000_101, "data/{}/dark.png", pixels=(draw(2_000_101).picture // 100).astype(np.uint8))
    save(2_000_102, "data/{}/horn.png", label="unicorn")
    Path("data/broken.png").write_text("no picture")
    status, said, notes, found = doctor("--model", "demo", "--data", "data", "--test", "test", *FEW)
    assert status == 1
    by_kind = {finding["kind"]: finding for finding in found if not finding["layer"]}
    assert {kind: finding["level"] for kind, finding in by_kind.items()} == {
        "leak": "bad",
        "label-conflict": "bad",
        "normalization": "warn",
        "unknown-class": "warn",
        "labels-disagree": "warn",
    }
    for name in ("/05.png = test/", "/copy.png", "/03.png = test/", "/smaller.jpg"):
        assert name in by_kind["leak"]["message"]
    assert f"data/{other}/twice.png ({other})" in by_kind["label-conflict"]["message"]
    assert "/dark.png" in by_kind["normalization"]["message"]
    assert "'unicorn'" in by_kind["unknown-class"]["message"]
    assert f"data/{wrong}/wrong.png (label {wrong}, " in by_kind["labels-disagree"]["message"]
    assert "not examined: 1 pictures: cannot be read: data/broken.png" in said
    assert "BAD  leak: 2 pictures" in said
    assert "training set data, test set test" in notes
    page = Path("out/doctor.html").read_text()
    assert all(name in page for name in ("smaller.jpg", "twice.png", "wrong.png", "unicorn", "data:image/jpeg"))


def test_the_same_folder_without_faults_is_silent() -> None:
    healthy()
    state = torch.get_rng_state()
    status, said, _, found = doctor("--model", "demo", "--data", "data", *FEW)
    assert status == 0
    assert [finding for finding in found if finding["level"] == "bad" or not finding["layer"]] == []
    assert "the page: out/doctor.html" in said
    assert "not examined: leaks: --test was not given" in said
    assert torch.equal(state, torch.get_rng_state())
    assert sorted(path.name for path in Path("out").iterdir()) == ["doctor.html", "doctor.json"]


def test_folders_that_hold_both_sets_are_compared() -> None:
    healthy(8, "data/train")
    save(2_000_003, "data/val/{}/again.png")
    save(2_200_000, "data/val/{}/new.png")
    status, said, notes, found = doctor("--model", "demo", "--data", "data", *FEW)
    assert (status, [finding["kind"] for finding in found if finding["level"] == "bad"]) == (1, ["leak"])
    assert "training set data/train, test set data/val" in notes
    assert "val/" in said


def test_json_on_the_terminal_is_that_of_the_file_and_without_data_only_the_structure_is_examined() -> None:
    status, said, notes, found = doctor("--model", "shop:softmax", "--json", *FEW)
    assert status == 0
    assert json.loads(said)["findings"] == found
    assert ("warn", "softmax-twice") in [(finding["level"], finding["kind"]) for finding in found]
    assert set(found[0]) == {"level", "kind", "layer", "message", "value", "threshold", "n", "advice", "source"}
    assert "only the structure of the model was examined" in notes
    assert "no --data was given" in Path("out/doctor.html").read_text()


def test_pictures_that_a_transform_does_not_normalize() -> None:
    Path("plain.py").write_text(
        "import shop\n\ndef net():\n    model = shop.net()\n"
        "    model.transform = {'size': 32, 'mean': (0.0,) * 3, 'std': (1.0,) * 3}\n    return model\n"
    )
    for i, label in enumerate(["cat", "cup", "person"] * 4):
        save(i, f"data/{label}/{i}.png", label=label)
    _, _, _, found = doctor("--model", "plain:net", "--data", "data", *FEW)
    [finding] = [finding for finding in found if finding["kind"] == "normalization"]
    assert finding["level"] == "warn"
    assert "not normalized" in finding["message"]


def test_labels_without_class_names_are_folders_in_order_and_indices_out_of_range_are_found() -> None:
    for i in range(12):
        save(i, f"data/{i % 4 + 1}/{i}.png", label="")
    status, _, notes, found = doctor("--model", "shop:nameless", "--data", "data", *FEW)
    assert (status, found[0]["kind"]) == (1, "label-range")
    assert "read as class indices" in notes
    assert "from 1 to 4, but there are only classes 0 to 2" in found[0]["message"]
    for i in range(12):
        save(i, f"named/{'abc'[i % 3]}/{i}.png", label="")
    _, _, notes, found = doctor("--model", "shop:nameless", "--data", "named", *FEW)
    assert "labels are numbered in alphabetical order" in notes
    assert "label-range" not in [finding["kind"] for finding in found]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "shop:nett"], "did you mean 'net'"),
        (["--model", "shop:net", "--test", "test"], "--test needs --data"),
        (["--model", "shop:net", "--data", "nothing"], "no file or folder 'nothing'"),
        (["--model", "shop:net", "--steps", "0"], "the number of steps is 0; expected at least 1"),
        (["--model", "shop:net", "--batch-size", "1"], "the batch size is 1; expected at least 2"),
        (["--model", "shop:never"], "shop:never does not accept images of shape"),
        (["--model", "shop:net", "--data", "text"], "no picture can be read (1 tried)"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    Path("text").mkdir()
    Path("text/a.png").write_text("no picture")
    status, said, notes, _ = doctor(*arguments)
    assert (status, said) == (2, "")
    assert says in notes.splitlines()[-1]


def test_one_logit_is_no_class_to_be_out_of_range() -> None:
    for i in range(8):
        save(i, f"data/{i % 2}/{i}.png", label="")
    Path("single.py").write_text(
        "import shop\n\ndef net():\n    model = shop.one_logit()\n    del model.class_names\n    return model\n"
    )
    status, _, _, found = doctor("--model", "single:net", "--data", "data", *FEW)
    assert "label-range" not in [finding["kind"] for finding in found]
    assert status in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "torchvision:resnet18",
        "timm:test_vit.r160_in1k",
        *(
            pytest.param(model, marks=pytest.mark.exhaustive)
            for model in ("torchvision:mobilenet_v3_small", "timm:vit_tiny_patch16_224")
        ),
    ],
)
def test_fresh_models_are_healthy(model: str) -> None:
    status, _, _, found = doctor("--model", model, "--image-size", "64", *FEW)
    assert status == 0
    assert [finding for finding in found if finding["level"] == "bad"] == []


def test_a_picture_outside_of_numbered_folders_has_no_label() -> None:
    given = {"0/a.png": "0", "3/b.png": "3", "c.png": None}
    labels = SimpleNamespace(names=None, of=lambda entry: given[entry.key])
    entries = [Entry(key, key) for key in given]
    index, said = classes_of(SimpleNamespace(labels=labels), entries, 10)  # type: ignore[arg-type]
    assert [index(entry) for entry in entries] == [0, 3, None]
    assert said.endswith("read as class indices")
