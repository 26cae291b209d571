"""Serve the app on the loopback address only, on the next free port, without telemetry."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gradcam_kit.app.launching import gradio, launch_options
from gradcam_kit.app.page import build_page
from gradcam_kit.app.views import AppModel
from gradcam_kit.errors import GradCamKitError, MissingExtraError, OptionError
from gradcam_kit.jobs.request import ModelRequest
from gradcam_kit.models.photos import INSTALL, weights_file
from gradcam_kit.pages import open_page

LOOPBACK = "127.0.0.1"
PORT = 7860
_PORTS = 100  # number of ports to try


def default_model(say: Callable[[str], None]) -> str:
    """Return `mobilenet-v2` if its weights are installed; else say how to install them, and return `demo`."""
    try:
        weights_file()
    except MissingExtraError:
        say(f"showing the bundled model of shapes; for photographs, run {INSTALL} or pass --model")
        return "demo"
    return "mobilenet-v2"


def free_port(port: int) -> int:
    """Return the first free port of the loopback address, starting at `port`.

    Raises:
        OptionError: the number is not a port, or this port and the next 99 ports are taken.
    """
    if not 1 <= port <= 65535:
        raise OptionError(f"--port is {port}; expected a number from 1 to 65535, such as {PORT}")
    last = min(port + _PORTS, 65536)
    for candidate in range(port, last):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if os.name == "posix":  # as servers do, so that a recently closed port counts as free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, candidate))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise OptionError(f"the address {LOOPBACK}:{candidate} cannot be used: {error.strerror}") from error
                continue
            return candidate
    raise OptionError(f"the ports from {port} to {last - 1} are all taken; choose another with --port")


def serve(
    request: ModelRequest,
    *,
    port: int = PORT,
    share: bool = False,
    open_browser: bool = False,
    say: Callable[[str], None] = print,
    wait: Callable[[], object] | None = None,
) -> None:
    """Load a model, and serve the app until Ctrl-C.

    Args:
        request: the model.
        port: port of the loopback address; if it is taken, the next free one is used, and `say` is called with a note.
        share: also create a public link through Gradio's servers.
        open_browser: open the page; without a display or browser, `say` is called with its address.
        say: called with the address and other messages for the user.
        wait: function that returns when the app should end; None = wait for Ctrl-C.

    Raises:
        MissingExtraError: Gradio is not installed.
        GradCamKitError: the request is invalid, or no port is free.
    """
    # Check for Gradio and a free port before the slow loading of the model. Search for a port again afterwards, because
    # another program may take the first one meanwhile.
    gradio()
    free_port(port)
    page = build_page(AppModel.load(request))
    chosen = free_port(port)
    if chosen != port:
        say(f"port {port} is taken; the app uses the next free one, {chosen}")
    with running(page, chosen, share) as addresses:
        say(f"the app: {addresses[0]} (Ctrl-C ends it)")
        if share:
            say(f"public link, open to anybody who knows it: {addresses[1]}")
        if open_browser and (problem := open_page(addresses[0])):
            say(problem)
        try:
            (wait or threading.Event().wait)()
        except KeyboardInterrupt:
            say("the app has ended")


@contextmanager
def running(page: Any, port: int, share: bool = False) -> Iterator[tuple[str, str | None]]:
    """Serve a page on a port of the loopback address, and yield its local and public addresses."""
    try:
        with _reached_directly():
            _, local, public = page.launch(
                server_name=LOOPBACK,
                server_port=port,
                share=share,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
                **launch_options(),
            )
    except (OSError, ValueError, RuntimeError) as error:
        page.close(verbose=False)
        raise GradCamKitError(f"the app cannot be served at {LOOPBACK}:{port}: {error}") from error
    try:
        yield local, public
    finally:
        page.close(verbose=False)


@contextmanager
def _reached_directly() -> Iterator[None]:
    """Make Gradio's first requests to its own server bypass any proxy."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    for name, value in before.items():
        os.environ[name] = ",".join(filter(None, [value, LOOPBACK, "localhost"]))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
