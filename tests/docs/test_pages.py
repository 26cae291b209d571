"""Every example of the documentation runs as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from documents import DOCS, blocks, run_examples
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.methods import METHODS
from gradcam_kit.metrics import METRICS
from gradcam_kit.models import photos

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(DOCS.rglob("*.md"))
OWN_TESTS = {"inputs", "diagnostics", "diagnostics-attention", "diagnostics-compare", "diagnostics-logging"}
"""Pages whose examples run in a test of their own, which also looks at the results."""


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path, monkeypatch):
    """Examples register methods and metrics, draw numbers, and write files."""
    monkeypatch.chdir(tmp_path)
    for name in ("PICTURES", "MASKS"):
        (tmp_path / name).symlink_to(ROOT / "gradcam_kit" / "demo" / name.lower(), target_is_directory=True)
    before = [(registry, dict(registry)) for registry in (METHODS, METRICS)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    for registry, names in before:
        registry.clear()
        registry.update(names)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python") and page.stem not in OWN_TESTS and page.parent.name != "errors"],
    ids=lambda page: page.stem,
)
def test_the_python_examples_run_in_order(page: Path) -> None:
    run_examples(page)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "\ngradcam-kit " in page.read_text()], ids=lambda page: page.stem
)
def test_the_commands_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "PACKAGE", "no_package_of_this_name")  # tests/cli/test_demo_page.py shows photographs
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    for command in (line for line in lines if line.startswith("gradcam-kit ")):
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), link


def test_the_check_that_trust_shows_is_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "how-to" / "trust.md"
    exec(compile(blocks(page, "python")[0], str(page), "exec"), {})
    printed = capsys.readouterr().out.strip()
    shown = re.search(r"```\n(Sanity check of .*?)\n```", page.read_text(), re.DOTALL)
    assert shown
    number = r"[-+]?\d+\.\d+"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown[1])
    # How much maps of drawn weights resemble the real ones may differ in the second digit between versions of torch.
    for here, there in zip(re.findall(number, printed), re.findall(number, shown[1]), strict=True):
        assert float(here) == pytest.approx(float(there), abs=0.1)
