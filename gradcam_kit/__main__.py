"""Entry point of the command line, for `gradcam-kit` and `python -m gradcam_kit`."""

import os
import signal
import sys
from types import FrameType

from gradcam_kit.errors import GradCamKitError

_SAID = "gradcam-kit: interrupted\n"


def main() -> None:
    """Run the command line. Ctrl+C ends it with a one-line message, even while modules are being imported."""
    _let_threads_sleep()
    usual = signal.default_int_handler
    is_usual = signal.getsignal(signal.SIGINT) is usual  # other handlers were set deliberately, such as SIG_IGN
    try:
        if is_usual:
            signal.signal(signal.SIGINT, _interrupt)
        try:
            from gradcam_kit.cli import main as run
        except GradCamKitError as error:  # a required library cannot be loaded
            sys.stderr.write(f"gradcam-kit: {error}\n")
            sys.exit(2)
        run()
    except KeyboardInterrupt:
        sys.stderr.write(_SAID)
        sys.exit(130)
    finally:
        if is_usual:
            signal.signal(signal.SIGINT, usual)


def _let_threads_sleep() -> None:
    """Make waiting OpenMP threads sleep, unless the user decided otherwise; call this before torch is imported."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Exit immediately during an import, because half-imported modules would fail in confusing ways."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, _SAID.encode())
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
