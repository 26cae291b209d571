"""Which port the app takes, what it says, and what it needs."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterator

import pytest
from commands import cli

from gradcam_kit import pages
from gradcam_kit.app import launching, serving
from gradcam_kit.errors import MissingExtraError, OptionError
from gradcam_kit.jobs import ModelRequest


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind((serving.LOOPBACK, 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_port_gives_the_next_free_one(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken < serving.free_port(taken) < taken + 100
    monkeypatch.setattr(serving, "_PORTS", 1)
    with pytest.raises(OptionError, match="all taken; choose another with --port"):
        serving.free_port(taken)
    for port in (0, 70_000):
        with pytest.raises(OptionError, match=f"--port is {port}; expected a number from 1 to 65535"):
            serving.free_port(port)


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r'pip install -e "\.\[app\]"'):
        launching.gradio()
    status, _, problem = cli("app", "--model", "demo")
    assert (status, problem.count("\n")) == (2, 1)
    assert problem.startswith("gradcam-kit: the app needs Gradio")


def test_the_default_model_is_the_one_of_photographs_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(serving, "weights_file", lambda: None)
    assert (serving.default_model(said.append), said) == ("mobilenet-v2", [])

    def missing() -> None:
        raise MissingExtraError("not there")

    monkeypatch.setattr(serving, "weights_file", missing)
    assert serving.default_model(said.append) == "demo"
    assert "pip install" in said[0]


def test_two_apps_stand_side_by_side(served: Callable[[str], str]) -> None:
    first, second = served("demo"), served("moody_model:model")
    assert first.startswith("http://127.0.0.1:")
    assert int(second.rstrip("/").rsplit(":", 1)[1]) > int(first.rstrip("/").rsplit(":", 1)[1])


def test_a_port_that_is_taken_while_the_model_loads_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page:
        def launch(self, *, server_port: int, **options: object) -> tuple[None, str, None]:
            with socket.socket() as server:
                server.bind((serving.LOOPBACK, server_port))
            return None, f"http://127.0.0.1:{server_port}/", None

        def close(self, verbose: bool) -> None:
            pass

    first, said = serving.free_port(8400), []
    for name in ("gradio", "launch_options"):
        monkeypatch.setattr(serving, name, dict)
    monkeypatch.setattr(serving, "build_page", lambda model: Page())
    with socket.socket() as other:

        def load(request: ModelRequest) -> None:
            other.bind((serving.LOOPBACK, first))
            other.listen()

        monkeypatch.setattr(serving.AppModel, "load", load)
        serving.serve(ModelRequest("demo", device="cpu"), port=first, say=said.append, wait=lambda: None)
    assert said[0].startswith(f"port {first} is taken; the app uses the next free one, ")
    with pytest.raises(OptionError, match="expected a number from 1 to 65535"):  # before the loading
        serving.serve(ModelRequest("nothing:here"), port=0)


@pytest.mark.parametrize("display", ["", ":7"])
def test_a_browser_is_opened_where_there_is_a_display(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Page:
        closed = False

        def launch(self, **options: object) -> tuple[None, str, None]:
            assert (options["server_name"], options["share"], options["inbrowser"]) == ("127.0.0.1", False, False)
            assert "127.0.0.1" in os.environ["NO_PROXY"]
            return None, f"http://127.0.0.1:{options['server_port']}/", None

        def close(self, verbose: bool) -> None:
            self.closed = True

    shown, said, opened = Page(), [], []
    for name in ("NO_PROXY", *pages._DISPLAYS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    for name in ("gradio", "launch_options"):
        monkeypatch.setattr(serving, name, dict)
    monkeypatch.setattr(serving, "build_page", lambda model: shown)
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    request = ModelRequest("demo", device="cpu")
    serving.serve(request, port=7990, open_browser=True, say=said.append, wait=lambda: None)
    address = said[0].split()[2]
    assert address.startswith("http://127.0.0.1:")
    assert opened == ([address] if display else [])
    assert said[1:] == ([] if display else [f"--open: no display or browser is available; the page is at {address}"])
    assert shown.closed
    assert "NO_PROXY" not in os.environ
