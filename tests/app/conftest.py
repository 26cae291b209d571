"""The app on a port of this computer, and a browser that may ask nothing else."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import Page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
OF_GRADIO = ("[svelte-i18n] Message with id", "Method not implemented.")
"""What Gradio's own scripts write to the console."""


class Server:
    """`gradcam-kit app` in a process of its own, behind a proxy that nothing should ask."""

    def __init__(self, spec: str, port: int) -> None:
        self.proxy = socket.create_server(("127.0.0.1", 0))
        self.proxy.settimeout(0)
        address = f"http://127.0.0.1:{self.proxy.getsockname()[1]}"
        command = [sys.executable, "-m", "gradcam_kit", "app", "--model", spec, "--device", "cpu", "--port", str(port)]
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        environment = {**os.environ, **dict.fromkeys(names, address), "PYTHONPATH": str(ROOT)}
        for name in ("NO_PROXY", "no_proxy"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            command, cwd=SUPPORT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line.strip())
            if line.startswith("the app: "):
                break
        else:
            raise AssertionError("\n".join(self.lines))
        self.url = self.lines[-1].split()[2]

    def stop(self) -> tuple[int, str]:
        """End it as Ctrl-C does: exit status, and what it said at last."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said

    def asked_others(self) -> bool:
        """Whether the process has asked for an address of another computer."""
        try:
            self.proxy.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="session")
def served() -> Iterator[Callable[[str], str]]:
    """From the specification of a model to the address of its app, which is started once."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('the page needs Gradio: pip install -e ".[app]"')
    servers: dict[str, Server] = {}

    def serve(spec: str) -> str:
        if spec not in servers:
            servers[spec] = Server(spec, 7960)
        return servers[spec].url

    yield serve
    for server in servers.values():
        status, said = server.stop()
        asked = server.asked_others()
        server.proxy.close()
        assert (status, asked) == (0, False), said
        assert said.strip().endswith("the app has ended")


@pytest.fixture
def opened(browser: Browser, served: Callable[[str], str]) -> Iterator[Callable[[str], Page]]:
    """From the specification of a model to its page; at the end nothing but this computer was asked."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    pages: list[Page] = []

    def goto(spec: str) -> Page:
        url = served(spec)
        context.route(lambda asked: not asked.startswith((url, "data:", "blob:")), lambda route: route.abort())
        pages.append(Page(context.new_page()))
        pages[-1].page.goto(url)
        return pages[-1]

    yield goto
    for page in pages:
        assert {url.split("/")[2].split(":")[0] for url in page.requests if url.startswith("http")} == {"127.0.0.1"}
        assert [problem for problem in page.problems if not any(known in problem for known in OF_GRADIO)] == []
    context.close()
