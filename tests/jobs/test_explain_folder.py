"""`explain_folder` and the registries take what people pass, or say what they expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import disk
import forked
import pytest

from gradcam_kit import METHODS, explain_folder
from gradcam_kit.errors import UnknownNameError
from gradcam_kit.jobs import Run
from gradcam_kit.metrics import METRICS
from gradcam_kit.options import Registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    disk.write_picture(Path("pictures/cat/a.png"), disk.CAT)


def explain(**options: Any) -> Run:
    return explain_folder("pictures", "shop:nameless", "out", report=False, quiet=True, workers=1, **options)


def test_one_name_need_not_be_in_a_list() -> None:
    Path("names.txt").write_text("dog\ncup\nperson\n")
    run = explain(methods="hires-cam", layers="stage1", metrics="sparseness", class_names="names.txt", targets=1)
    assert run.methods == ["hires-cam"]
    assert run.manifest["class_names"] == ["dog", "cup", "person"]
    assert (run[0]["layer"], run[0]["target_name"], run[0]["sparseness_status"]) == ("stage1", "cup", "ok")


def test_names_in_lists_are_taken_too() -> None:
    run = explain(methods=["grad-cam", "hires-cam"], class_names=["a", "b", "c"], metrics=["entropy"], targets="top:2")
    assert run.methods == ["grad-cam", "hires-cam"]
    assert run.manifest["class_names"] == ["a", "b", "c"]
    assert len(run) == 4


WRONG = {
    "overlays='none'": "InputError: the number of overlays is 'none'; expected an integer of at least 0",
    "batch_size='8'": "InputError: the batch size is '8'; expected an integer of at least 1",
    "workers=1.5": "InputError: the number of workers is 1.5; expected an integer of at least 0",
    "shard_size=True": "InputError: the shard size is True; expected an integer of at least 1",
    "methods=[GradCAM]": "InputError: the method or metric <class 'gradcam_kit.methods.grad_cam.GradCAM'> is not a "
    "string; expected a name",
    "methods='gradcam'": "UnknownNameError: there is no method 'gradcam'; see 'gradcam-kit methods'",
    "class_names='none.txt'": "InputError: the class names in 'none.txt' cannot be read",
    "model=5": "InputError: the model is an int; expected a torch.nn.Module, or a specification such as",
}


def test_wrong_types_say_what_is_expected() -> None:
    """In a process of its own, without the checks of types that the tests add."""
    lines = ["from gradcam_kit import GradCAM, explain_folder", "given = dict(model='shop:net', quiet=True)"]
    for arguments in WRONG:
        lines += [
            f"try: explain_folder('pictures', out='out', **{{**given, **dict({arguments})}})",
            "except Exception as error: print(f'{type(error).__name__}: {error}')",
        ]
    done = forked.run("\n".join(lines), preload=forked.COMMAND)
    said = done.stdout.splitlines()
    assert len(said) == len(WRONG), done.stderr
    for line, expected in zip(said, WRONG.values(), strict=True):
        assert line.startswith(expected)


@pytest.mark.parametrize(
    ("registry", "name", "says"),
    [
        (METHODS, "gradcam", "there is no method 'gradcam'; in gradcam_kit: 'grad-cam'"),
        (METRICS, "pointinggame", "there is no metric 'pointinggame'; in gradcam_kit: 'pointing-game'"),
        (METRICS, "?", "there is no metric '?'; known are "),
    ],
)
def test_registries_know_what_was_meant(registry: Registry[Any], name: str, says: str) -> None:
    with pytest.raises(KeyError) as caught:
        registry[name]
    assert isinstance(caught.value, UnknownNameError)
    assert str(caught.value).startswith(says)
    assert registry.get(name) is None
    assert name not in registry
