"""Specifications of models: what is loaded by name or from a factory, and how wrong ones are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import transformers
from skimage import data
from torch import nn
from torchvision import models

from gradcam_kit.errors import (
    CheckpointError,
    InputError,
    MissingExtraError,
    OptionError,
    UnknownNameError,
)
from gradcam_kit.models import load_model, user_code
from gradcam_kit.models.checkpoints import weights_hash
from gradcam_kit.transforms import (
    IMAGENET,
    CallableTransform,
    PictureTransform,
)


def test_random_weights_are_the_same_each_time_and_leave_the_random_state_alone() -> None:
    first = load_model("torchvision:resnet18")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    second = load_model("torchvision:resnet18")
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_hash(first.model) == weights_hash(second.model)
    assert not any(module.training for module in first.model.modules())
    assert first.transform == IMAGENET
    assert first.class_names is not None
    assert first.class_names[0] == "tench"  # 1000 outputs, as of ImageNet
    assert any("random weights" in note for note in first.notes)


def test_the_hash_sees_every_value() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = weights_hash(model)
    model[1].running_var[0] += 1
    assert weights_hash(model) != before


def test_named_weights_bring_their_transform_and_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    state = models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    loaded = load_model("torchvision:resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(loaded.model.state_dict()["fc.weight"], state["fc.weight"])
    assert loaded.transform == PictureTransform(size=(224, 224), resize=256)
    assert loaded.class_names is not None
    assert loaded.class_names[281] == "tabby"
    assert loaded.weights == "IMAGENET1K_V1"
    assert load_model("torchvision:resnet50", class_names=["a", "b"]).model.fc.out_features == 2


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(CheckpointError, match=r"IMAGENET1K_V1 of resnet18 cannot be loaded: .*no route to host"):
        load_model("torchvision:resnet18", weights="DEFAULT")


def test_timm_models_bring_their_data_config() -> None:
    loaded = load_model("timm:vit_tiny_patch16_224", image_size=64, class_names=list("abc"))
    assert isinstance(loaded.transform, PictureTransform)
    assert loaded.transform.size == (64, 64)
    assert loaded.transform.mean == (0.5, 0.5, 0.5)
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert loaded.class_names == ("a", "b", "c")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A tiny Hugging Face model in a folder, with labels and a processor."""
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
        patch_size=16,
        id2label={0: "cat", 1: "dog", 10: "owl"},
        num_labels=3,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


def test_hugging_face_models_bring_labels_and_processor(hub: Path) -> None:
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(hub)
    loaded = load_model(f"hf:{hub}")
    assert loaded.class_names == ("cat", "dog", "owl")
    assert isinstance(loaded.transform, PictureTransform)
    assert (loaded.transform.size, loaded.transform.mean) == ((32, 32), (0.5, 0.5, 0.5))


def test_a_processor_that_is_not_understood_is_used_as_it_is(hub: Path) -> None:
    processor = transformers.EfficientNetImageProcessor(size={"height": 32, "width": 32})  # it normalizes twice
    processor.save_pretrained(hub)
    loaded = load_model(f"hf:{hub}")
    assert isinstance(loaded.transform, CallableTransform)
    picture = data.coffee()
    assert torch.equal(loaded.transform(picture), processor(images=picture, return_tensors="pt")["pixel_values"][0])
    assert any("unknown which part of a picture the transform shows" in note for note in loaded.notes)
    with pytest.raises(OptionError, match="a callable, so image size"):
        load_model(f"hf:{hub}", image_size=64)


def test_a_model_without_processor_gets_imagenet_defaults_and_says_so(hub: Path) -> None:
    loaded = load_model(f"hf:{hub}")
    assert loaded.transform == IMAGENET
    assert any("the model has no image processor" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("torchvision:resnet5", {}, "no image classifier 'resnet5'; did you mean 'resnet50'"),
        ("torchvision:fcn_resnet50", {}, "no image classifier 'fcn_resnet50'"),
        ("torchvision:resnet18", {"weights": "V9"}, "no weights 'V9' for resnet18; it has IMAGENET1K_V1"),
        ("timm:resnet1", {}, "timm has no model 'resnet1'; did you mean"),
        ("timm:resnet18", {"weights": "a9"}, "no weights 'a9' for resnet18; it has a1_in1k"),
        ("torchvison:resnet18", {}, "module:factory; did you mean 'torchvision'?"),
        (
            "resnet18",
            {},
            "package.module:factory; did you mean 'torchvision:resnet18' or 'timm:resnet18'?",
        ),
        ("demo:small", {}, "package.module:factory; did you mean 'demo'?"),
        ("torchvision:", {}, "'torchvision:' is not a model"),
        ("json:lods", {}, "module 'json' has no factory 'lods'; did you mean 'loads'"),
        ("hf:/nowhere/at/all", {}, "Hugging Face model '/nowhere/at/all' cannot be loaded"),
    ],
)
def test_unknown_names_say_what_is_near(spec: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_model(spec, **options)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r'requires timm, which is not installed; .*-e "\.\[models\]"'):
        load_model("timm:resnet18")


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(OptionError, match=r"both weights 'DEFAULT' and checkpoint 'best.pt'"):
        load_model("torchvision:resnet18", weights="DEFAULT", checkpoint="best.pt")
    with pytest.raises(OptionError, match="json:loads has its own weights"):
        load_model("json:loads", weights="DEFAULT")


FACTORIES = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def complete():
    model = plain()
    model.transform = {"size": [48, 64], "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    model.class_names = ["ant", "bee", "cow", "dog"]
    return model

def calling():
    model = plain()
    model.transform = lambda picture: torch.from_numpy(picture).permute(2, 0, 1) / 255
    return model

def wrong():
    return [plain()]

def failing():
    raise RuntimeError("no weights here")

instance = plain()
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_models.py").write_text(FACTORIES)
    (tmp_path / "their_broken.py").write_text("import a_library_that_is_missing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)


@pytest.mark.usefixtures("factories")
def test_what_is_no_callable_was_not_named() -> None:
    with pytest.raises(InputError, match="is a str, not a model; expected a callable"):
        user_code.imported("their_models:__name__", "model")
    assert not user_code.was_named("their_models:__name__")
    user_code.imported("their_models:complete", "model")
    assert user_code.was_named("their_models:complete")


@pytest.mark.parametrize(
    ("rest", "said"), [("def make(): pass\n", None), ("1 / 0\n", "failed: ZeroDivisionError: division by zero")]
)
def test_a_module_may_edit_the_path_of_modules(
    rest: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "path_editing", raising=False)
    Path("path_editing.py").write_text(f"import sys\nsys.path[:] = sys.path[1:]\n{rest}")
    if said is None:
        assert user_code.imported("path_editing:make", "model").__name__ == "make"
    else:
        with pytest.raises(InputError, match=said):
            user_code.imported("path_editing:make", "model")


@pytest.mark.usefixtures("factories")
def test_a_factory_beside_the_user_is_found() -> None:
    before = list(sys.path)
    complete = load_model("their_models:complete")
    assert sys.path == before
    assert complete.transform == PictureTransform(size=(48, 64), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert complete.class_names == ("ant", "bee", "cow", "dog")
    assert complete.notes == ("pictures are prepared by the transform that their_models:complete carries",)
    assert isinstance(load_model("their_models:calling").transform, CallableTransform)


@pytest.mark.usefixtures("factories")
def test_without_transform_and_names_flags_or_defaults_apply_and_are_said() -> None:
    plain = load_model("their_models:plain")
    assert plain.transform == IMAGENET
    assert "the model carries no transform" in plain.notes[0]
    assert "class names are unknown" in plain.notes[1]
    flagged = load_model(
        "their_models:plain", image_size=112, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), class_names=["x"]
    )
    assert flagged.transform == PictureTransform((112, 112), 128, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert flagged.class_names == ("x",)
    assert "changed by options" in flagged.notes[0]
    assert not load_model("their_models:instance").model.training


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("their_models:plane", UnknownNameError, "has no factory 'plane'; did you mean 'plain'"),
        ("their_models:wrong", InputError, "returned a list; expected a torch.nn.Module"),
        ("their_models:failing", InputError, "their_models:failing failed: RuntimeError: no weights here"),
        ("their_broken:anything", InputError, "importing 'their_broken' failed: No module named 'a_library_that"),
        ("their.models:plain", UnknownNameError, "no module 'their'"),
    ],
)
def test_wrong_factories(spec: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        load_model(spec)
    assert says in str(caught.value)
