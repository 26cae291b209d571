"""What a run says of its scores, its classes and its inputs: in rows, in run.json, in notes, on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as old
from PIL import Image
from torch import Tensor, nn

from gradcam_kit import explain_folder
from gradcam_kit.cli import app
from gradcam_kit.errors import GradCamKitError, InputError, OptionError, UnknownNameError
from gradcam_kit.jobs import EvaluateRequest, Run, evaluate
from gradcam_kit.jobs.work.loading import load_explainer
from gradcam_kit.transforms import as_transform


class Net(nn.Module):
    """A classifier of four classes, or of others, with any ending."""

    def __init__(self, end: Any = nn.Identity(), classes: int = 4, channels: int = 3) -> None:  # noqa: B008
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head, self.end = nn.Conv2d(channels, 6, 3, 2), nn.Linear(6, classes), end
        self.class_names = ["cat", "dog", "cup", "K\u00e4se"][:classes]
        self.transform: Any = {"size": 32, "mean": (0.5,) * channels, "std": (0.5,) * channels}

    def forward(self, images: Tensor) -> Any:
        return self.end(self.head(self.features(images.float()).relu().mean((2, 3))) * 3 + 1)


PICTURES = {name: np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8) for i, name in enumerate("ab")}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, picture in PICTURES.items():
        Path("pictures").mkdir(exist_ok=True)
        Image.fromarray(picture).save(f"pictures/{name}.png")


def explain(model: nn.Module, out: str = "out", source: str = "pictures", **options: Any) -> Run:
    return explain_folder(source, model.eval(), out, quiet=True, workers=1, overlays=0, **options)


def outputs(model: nn.Module, transform: Any = None) -> Tensor:
    prepared = as_transform(model.transform if transform is None else transform)
    with torch.no_grad():
        return model.eval()(torch.stack([prepared(picture) for picture in PICTURES.values()]))


ENDS: dict[str, tuple[Any, str]] = {
    "logits": (nn.Identity(), "softmax"),
    "sigmoid": (nn.Sigmoid(), "raw"),
    "softmax": (nn.Softmax(1), "raw"),
    "log-softmax": (nn.LogSoftmax(1), "softmax"),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_score_is_the_probability_that_the_model_means(name: str) -> None:
    end, kind = ENDS[name]
    model = Net(end)
    run = explain(model, report=False)
    expected = outputs(model).softmax(1) if kind == "softmax" else outputs(model)
    assert [row["score"] for row in run] == pytest.approx(expected.amax(1).tolist(), abs=1e-5)
    assert run[0]["top_scores"] == pytest.approx(sorted(expected[0].tolist(), reverse=True), abs=1e-5)
    assert run.manifest["scores"] == kind


@pytest.mark.parametrize(("end", "kind"), [(nn.Identity(), "sigmoid"), (nn.Sigmoid(), "raw")])
def test_a_single_output_is_a_probability_once(end: Any, kind: str) -> None:
    model = Net(end, classes=1)
    run = explain(model, report=False)
    values = outputs(model)
    expected = values.sigmoid() if kind == "sigmoid" else values
    assert [row["score"] for row in run] == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    with pytest.raises(OptionError, match="the softmax of Net's single output is always 1; choose sigmoid or raw"):
        explain(model, "other", scores="softmax")
    assert not Path("other").exists()


def test_what_is_asked_for_is_kept_and_agrees_on_resuming_and_measuring() -> None:
    model = Net()
    run = explain(model, scores="sigmoid", metrics="average-drop")
    assert [row["score"] for row in run] == pytest.approx(outputs(model).sigmoid().amax(1).tolist(), abs=1e-5)
    assert run.manifest["metrics"]["average-drop"]["score"] == "ClassProbability, sigmoid"
    plain = explain(model, "plain", scores="sigmoid", report=False)
    assert [row["score"] for row in plain] == [row["score"] for row in run]
    with pytest.raises(OptionError, match='a run with different scores: "sigmoid" before, "softmax" now'):
        explain(model, "plain", report=False)
    request = EvaluateRequest("out", metrics=("average-gain",), model=model, workers=1, baselines=False)
    assert evaluate(request).failed == 0
    assert "the score is the sigmoid of the output of the class" in Path("out/report.html").read_text()


def test_raw_scores_are_no_percentages_on_the_page() -> None:
    run = explain(Net(), scores="raw")
    assert max(row["score"] for row in run) == pytest.approx(outputs(Net()).max().item(), abs=1e-5)
    assert '"percent": false' in Path("out/report.html").read_text()


@pytest.mark.parametrize(("targets", "index"), [("dog", 1), ("Ka\u0308se", 3), ("class:cup", 2), ("2", 2)])
def test_a_class_name_is_a_target(targets: str, index: int) -> None:
    run = explain(Net(), targets=targets)
    assert {(row["target"], row["target_name"]) for row in run} == {(index, Net().class_names[index])}
    assert evaluate(EvaluateRequest("out", model=Net().eval(), workers=1, baselines=False)).failed == 0


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"targets": "dogg"}, UnknownNameError, "the targets are 'dogg'.*no class 'dogg'.*did you mean 'dog'"),
        (
            {"targets": "cat", "class_names": ["cat", "dog", "cat", "cup"]},
            UnknownNameError,
            "is the name of 2 classes, 0 and 2",
        ),
        ({"class_names": ["cat", "dog"]}, OptionError, "class names, 2, differs from the number of outputs of Net, 4"),
        ({"class_names": ["cat", None, "a", "b"]}, InputError, r"class_names\[1\] is a NoneType"),
        ({"transform": {"mean": (0.5, float("nan"), 0.5)}}, OptionError, "expected a finite number per channel"),
        ({"transform": old.Compose([old.RandomResizedCrop(8)])}, OptionError, "moves pixels at random"),
        ({"transform": {"size": 32, "mean": 0.5, "std": 0.5}}, InputError, "a single mean and std give gray images"),
        ({"transform": old.Compose([old.Resize(32)])}, InputError, r"returns Image; .*end the transform with ToTensor"),
    ],
)
def test_what_fits_no_picture_is_refused_before_anything_is_written(
    options: dict[str, Any], error: type[GradCamKitError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        explain(Net(), **options)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_a_model_of_gray_images_takes_one_number() -> None:
    model = Net(channels=1)
    run = explain(model, report=False)
    assert [row["score"] for row in run] == pytest.approx(outputs(model).softmax(1).amax(1).tolist(), abs=1e-5)
    with pytest.raises(InputError, match="for a model of gray images, pass a single mean and std"):
        explain(model, "other", transform={"size": 32})


class Scaling(Net):
    """Takes bytes and scales them by itself."""

    def forward(self, images: Tensor) -> Any:
        return super().forward(images.float() / 255)


class Strict(Net):
    """Takes floats alone."""

    def forward(self, images: Tensor) -> Any:
        return self.head(self.features(images).relu().mean((2, 3)))


def test_bytes_go_to_models_that_take_them() -> None:
    to_bytes = old.Compose([old.Resize((32, 32)), old.PILToTensor()])
    run = explain(Scaling(), transform=to_bytes, report=False)
    expected = outputs(Scaling(), to_bytes).softmax(1).amax(1).tolist()
    assert [row["score"] for row in run] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(
        InputError, match=r"returns bytes, which the model does not accept: .*end the transform with ToTe"
    ):
        explain(Strict(), "other", transform=to_bytes)


def test_the_command_takes_a_name_and_a_kind_of_score(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "run",
        "pictures",
        "--model",
        "demo",
        "--out",
        "out",
        "--workers",
        "1",
        "--overlays",
        "none",
        "--no-report",
    ]
    names = load_explainer(_demo()).loaded.class_names
    assert names is not None
    with pytest.raises(SystemExit) as left:
        app([*arguments, "--targets", names[2], "--scores", "raw"])
    assert left.value.code == 0
    assert "the score is the output of the class as it is, as requested" in capsys.readouterr().err
    manifest = json.loads(Path("out/run.json").read_text())
    assert (manifest["targets"], manifest["scores"]) == (names[2], "raw")
    with pytest.raises(SystemExit) as left:
        app([*arguments, "--targets", names[2], "--scores", "percent"])
    assert left.value.code == 2


def _demo() -> Any:
    from gradcam_kit.jobs import ModelRequest

    return ModelRequest("demo", device="cpu")
