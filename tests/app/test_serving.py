"""Which port the app takes, what it says, and what it needs."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from commands import cli

from gradcam_kit.app import page, serving
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
    with pytest.raises(OptionError, match="all taken; choose another one with --port"):
        serving.free_port(taken)
    for port in (0, 70_000):
        with pytest.raises(OptionError, match=f"--port is {port}; expected a number from 1 to 65535"):
            serving.free_port(port)


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(page.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r'pip install -e "\.\[app\]"'):
        page.gradio()
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


def test_the_app_says_where_it_is_and_ends_at_ctrl_c(taken: int, _gradio: None) -> None:
    said: list[str] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    request = ModelRequest("demo", device="cpu")
    serving.serve(request, port=taken, say=said.append, wait=interrupted)
    assert said[0].startswith(f"port {taken} is taken; the app uses the next free one, ")
    port = int(said[0].rsplit(" ", 1)[1])
    assert said[1:] == [f"the app: http://127.0.0.1:{port}/ (Ctrl-C ends it)", "the app has ended"]
    assert serving.free_port(port) == port
