"""The command line, as `gradcam-kit` and as `python -m gradcam_kit`."""

import os
import signal
import sys
from types import FrameType

from gradcam_kit.errors import GradCamKitError

_SAID = "gradcam-kit: interrupted\n"


def main() -> None:
    """Run the command line; an interruption ends it with one line, also while it is still being loaded."""
    _let_threads_sleep()
    usual = signal.default_int_handler
    is_usual = signal.getsignal(signal.SIGINT) is usual  # else somebody wants it ignored
    try:
        if is_usual:
            signal.signal(signal.SIGINT, _interrupt)
        try:
            from gradcam_kit.cli import main as run
        except GradCamKitError as error:  # a library that the command line needs cannot be loaded
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
    """Let threads that wait sleep, not spin, unless the user says otherwise: OpenMP reads it once, as torch loads."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Leave at once if a module is being imported: others go on with half of it, and fail in ways of their own."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, _SAID.encode())
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
