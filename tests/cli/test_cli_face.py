"""What a person meets first: version, examples, short flags, missing arguments, browsers, lists, threads."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import disk
import forked
import pytest
import torch
import typer
from commands import cli
from typer.testing import CliRunner

import gradcam_kit
from gradcam_kit import pages
from gradcam_kit.cli import app
from gradcam_kit.cli.command import command_threads
from gradcam_kit.jobs import cores
from gradcam_kit.methods import METHODS, BaseCAM
from gradcam_kit.methods.recommended import recommended
from gradcam_kit.models import load_model, named

ROOT = Path(__file__).parents[2]
GROUP: Any = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    for name in pages._DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")


def test_the_version_is_told() -> None:
    assert cli("--version") == (0, f"gradcam-kit {gradcam_kit.__version__}\n", "")


@pytest.mark.parametrize("name", GROUP.commands)
def test_every_help_has_an_example_that_can_be_typed(name: str) -> None:
    command = GROUP.commands[name]
    program, typed, *arguments = shlex.split(command.epilog.removeprefix("Example: "))
    assert (program, typed) == ("gradcam-kit", name)
    command.make_context(name, arguments)  # reads the arguments, and runs nothing
    status, said, _ = cli(name, "--help")
    assert status == 0
    assert " ".join(command.epilog.split()) in " ".join(said.split())


@pytest.mark.parametrize("command", [(), ("run",), ("demo",)])
def test_flags_are_shown_without_a_value(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
    flags = [line for line in shown.splitlines() if re.search(r"--(help|open|overwrite|version|no-report)\b", line)]
    assert flags
    assert not [line for line in flags if "<bool>" in line or "BOOLEAN" in line]


def test_missing_arguments_are_named_together() -> None:
    status, said, problem = cli("run")
    assert (status, said) == (2, "")
    assert "Missing SOURCE, --model and --out." in problem
    assert "Missing --model and --out." in cli("run", "pictures")[2]
    alone = cli("run", "pictures", "-o", "out")[2]
    assert "Missing option '--model'" in alone
    assert "No such option: --nonsense" in cli("run", "--nonsense")[2]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("run pictures --method grad-cam", {"grad-cam", "grad-cam++", "grad-cam-elementwise"}),
        ("evaluate out --metric road-m", {"road-morf"}),
        ("run pictures --dtype b", {"bfloat16"}),
        ("run pictures --targets ", {"predicted", "label"}),
        ("export out --to c", {"coco", "csv"}),
        ("mod", {"models"}),
    ],
)
def test_the_shell_completes_commands_and_values(typed: str, expected: set[str]) -> None:
    words = f"gradcam-kit {typed}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment = {"_GRADCAM_KIT_COMPLETE": "complete_bash", **asked}
    done = CliRunner().invoke(app, [], prog_name="gradcam-kit", env=environment)
    assert set(done.stdout.split()) == expected


def test_every_option_has_its_group() -> None:
    ungrouped = [
        (name, one.name)
        for name, command in GROUP.commands.items()
        for one in command.params
        if one.param_type_name == "option" and one.name not in ("help", "every", "threshold") and not one.hidden
        and one.rich_help_panel is None
    ]  # fmt: skip
    assert ungrouped == []


def test_short_flags_are_the_long_ones() -> None:
    disk.write_picture(Path("a.png"), disk.CAT)
    short = cli("compare", "a.png", "-m", "shop:net", "-o", "short.csv", "-l", "stage1", "--method", "grad-cam")
    long = ("--model", "shop:net", "--out", "long.csv", "--layer", "stage1", "--method", "grad-cam")
    assert (short[0], cli("compare", "a.png", *long)[0]) == (0, 0)
    assert Path("short.csv").read_text().splitlines()[0] == Path("long.csv").read_text().splitlines()[0]
    assert ",stage1," in Path("short.csv").read_text()


def test_open_says_where_the_page_is_when_there_is_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("a browser of the terminal was started"))
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    run = ("run", "pictures", "--model", "shop:net", "--out", "out", "--workers", "1", "--overlays", "none")
    status, _, notes = cli(*run, "--open")
    assert status == 0
    page = Path("out/report.html").resolve()
    assert notes.splitlines()[-1] == f"--open: no display or browser is available; the page is at {page}"
    status, _, problem = cli(*run, "--open", "--no-report", "--overwrite")
    assert (status, "--no-report leaves it out" in problem) == (2, True)


def test_open_gives_the_page_to_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    disk.write_picture(Path("a b.png"), disk.CAT)
    made = ("compare", "a b.png", "--model", "shop:net", "--out", "my page.html", "--method", "grad-cam")
    status, _, notes = cli(*made, "--open")
    assert (status, "--open" in notes) == (0, False)
    assert opened == [Path("my page.html").resolve().as_uri()]

    def fails(url: str) -> bool:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "open", fails)
    assert "the page is at" in str(pages.open_page("my page.html"))
    assert "remote storage" in str(pages.open_page("s3://bucket/out/report.html"))


def test_models_are_listed_with_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    status, said, hint = cli("models", "RESNET18")
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert status == 0
    assert lines["torchvision:resnet18"].split()[1:] == ["IMAGENET1K_V1"]
    assert "a1_in1k" in lines["timm:resnet18"]
    assert "--weights" in hint
    assert [model.spec for model in named.named_models("torchvision:resnet1?")] == ["torchvision:resnet18"]
    assert {model.spec for model in named.named_models()} >= {"demo", "mobilenet-v2"}
    status, said, problem = cli("models", "resnet19")
    assert (status, said) == (2, "")
    assert "no model matches 'resnet19'; did you mean 'resnet1" in problem
    monkeypatch.setattr(named, "has_timm", lambda: False)
    assert all(not model.spec.startswith("timm:") for model in named.named_models("resnet18"))
    assert 'pip install -e ".[models]"' in cli("models", "resnet18")[2]


def test_a_listed_spec_loads() -> None:
    assert load_model(named.named_models("torchvision:squeezenet1_1")[0].spec).weights == "random"


def test_every_method_is_recommended_for_something(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(recommended()) == set(METHODS)
    assert all(text and len(text) <= 60 and not text.endswith(".") for text in recommended().values())

    class Own(BaseCAM):
        """Weigh as I like. More is not said."""

    monkeypatch.setitem(METHODS, "own", Own)
    assert list(recommended().items())[-1] == ("own", "Weigh as I like")


def test_commands_take_no_more_threads_than_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for usable, expected in ((2, 2), (8, 3)):
            monkeypatch.setattr(cores, "usable_cores", lambda usable=usable: usable)
            with command_threads():
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        monkeypatch.setattr(cores, "usable_cores", lambda: 1)
        with command_threads():
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(given: str | None, expected: str) -> None:
    code = (
        "import os, sys; sys.argv = ['gradcam-kit', '--version']\n"
        "from gradcam_kit.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(ROOT)} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert shown.stdout.splitlines()[-1] == f"{expected} False"


def test_the_library_leaves_the_policy_alone() -> None:
    code = "import os, gradcam_kit; gradcam_kit.METHODS; print('OMP_WAIT_POLICY' in os.environ)"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    assert forked.run(code, environment=environment).stdout == "False\n"
