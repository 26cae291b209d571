"""The command line, run in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from gradcam_kit.cli import app


def cli(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and error of `gradcam-kit`."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
