"""Runs in processes that are killed or interrupted at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import disk
import forked
import numpy as np
import pytest
import torch
from runs import content

from gradcam_kit.jobs import RunRequest, run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = ("run", "pictures", "--model", "shop:slow", "--out", "out")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def start(code: str, *arguments: str) -> forked.Program:
    """The command in a process, and process group, of its own."""
    return forked.start(code, *arguments, preload=forked.COMMAND)


def many_pictures() -> None:
    for i in range(24):
        disk.write_picture(Path(f"pictures/{i % 3}/{i:02}.png"), np.roll(disk.CAT, 3 * i, axis=1))
    disk.break_pictures(Path("pictures"))


KILLED = """
import os, signal, sys
from gradcam_kit.cli import main

left = int(sys.argv.pop(1))

def watch(event, arguments):
    global left
    opens = event == "open" and "w" in str(arguments[1])
    if (opens or event in ("os.rename", "os.link", "os.remove", "os.mkdir")) and str(arguments[0]).startswith("out"):
        left -= 1
        if left == 0:
            if opens:
                os.write(os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), b"half of what was to be writ")
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
main()
"""


def test_killed_at_random_moments_it_ends_as_if_undisturbed() -> None:
    many_pictures()
    options = ("--shard-size", "3", "--batch-size", "2", "--workers", "2", "--no-report")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as the processes have it, because sums may depend on it
        run(RunRequest("shop:slow", source="pictures", out="whole", shard_size=3, batch_size=2, workers=2))
    finally:
        torch.set_num_threads(threads)
    draw = random.Random(0)
    # Moments are changes of the folder, of which a run makes more than 120 (28 overlays, 10 shards, 10 thumbnails).
    moments = [1, 2, *(draw.randint(20, 60) for _ in range(20))]
    for kills, moment in enumerate(moments):  # noqa: B007
        process = start(KILLED, str(moment), *RUN, *options)
        said, problems = process.communicate(timeout=300)
        if process.returncode != -signal.SIGKILL:
            break
    assert kills >= 4
    assert "Traceback" not in problems
    assert process.returncode == 1  # some pictures are broken
    assert "24 of 28 pictures explained (" in said
    assert content("out") == content("whole")


STOPPED = """
import os, sys
from gradcam_kit.cli import main
from gradcam_kit.jobs.storage.folders import LocalFolder

number, write = int(sys.argv.pop(1)), LocalFolder.write

def written(self, name, content):
    write(self, name, content)
    if name.startswith("shards/"):
        LocalFolder.write = write
        os.kill(os.getpid(), number)  # when the first of seven is there, and no more than two others are begun

LocalFolder.write = written
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(number: int) -> None:
    many_pictures()
    options = ("--shard-size", "4", "--batch-size", "2", "--no-report", "--overlays", "none")
    process = start(STOPPED, str(int(number)), *RUN, *options)
    said, problems = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "note: interrupted; finishing what is being written" in problems
    assert "Run the same command to resume." in problems
    assert "Traceback" not in said + problems
    rows = disk.read_rows(Path("out"))
    explained = sum(row["status"] == "ok" for row in rows)
    assert f"{explained} of 28 pictures explained in" in said
    assert f"interrupted, {28 - len(rows)} pictures left" in problems
    names = sorted(path.name for path in Path("out/shards").iterdir())
    assert 1 <= len(names) < 7
    assert names == [f"{i:05}.parquet" for i in range(len(names))]
    assert json.loads(Path("out/run.json").read_text())["pictures"] == 28


@pytest.mark.parametrize("module", ["gradcam_kit.cli.options", "numpy.linalg", "torch.nn", "pyarrow.parquet"])
def test_an_interruption_while_it_is_still_loading_is_one_line(module: str) -> None:
    program = f"""
import os, signal, sys
from gradcam_kit.__main__ import main

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", program, *RUN], env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "gradcam-kit: interrupted\n")


INTERRUPTED = """
import os, signal
from gradcam_kit.__main__ import main
from gradcam_kit.jobs.work import reader as decode

decode._FEW = 0
submit = decode.Reader._submit

def submitted(self, chunk):
    decode.Reader._submit = submit
    future = submit(self, chunk)  # a process has been started, and is importing
    os.killpg(0, signal.SIGINT)  # as a terminal does it
    return future

decode.Reader._submit = submitted
main()
"""


def test_an_interruption_does_not_disturb_readers_that_are_still_starting() -> None:
    many_pictures()
    process = start(INTERRUPTED, *RUN, "--no-report", "--workers", "1")
    said, problems = process.communicate(timeout=300)
    assert process.returncode == 130, problems
    assert "Traceback" not in said + problems
    assert "interrupted, 28 pictures left" in problems or problems.endswith("gradcam-kit: interrupted\n")  # importing
