"""How the pictures of a run are read: quietly, and without more memory than one large picture needs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from time import sleep

import disk
import numpy as np
import pytest
from PIL import Image

from gradcam_kit.jobs import RunRequest, run
from gradcam_kit.jobs.sources import reading
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.reading import decoders_quiet, picture_of
from gradcam_kit.pixels import pictures
from gradcam_kit.pixels.opencv import log_level
from gradcam_kit.pixels.pictures import rgb_picture

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def test_what_decoders_think_of_a_file_stays_out_of_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    disk.write_picture(Path("pictures/a.png"), disk.CAT)
    Path("pictures/cut.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 10 +X 10\nx")
    before = log_level()
    assert run(RunRequest("shop:net", source="pictures", out="out", workers=1)).failed == 1
    assert capfd.readouterr().err == ""
    assert log_level() == before != 0
    with decoders_quiet():
        warn_like_pil()
    with pytest.warns(UserWarning, match="odd"):
        warn_like_pil()


def warn_like_pil() -> None:
    warnings.warn_explicit("odd", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")


def test_no_two_large_pictures_are_in_use_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_picture(Path("large.png"), disk.CAT)
    disk.write_picture(Path("small.png"), disk.CAT[:10, :10])
    monkeypatch.setattr(reading, "_LARGE", 100)
    used, most, lock = Counter[str](), Counter[str](), Lock()

    def use(name: str) -> None:
        with picture_of(Entry(name, name)):
            with lock:
                used[name] += 1
                most[name] = max(most[name], used[name])
            sleep(0.05)
            with lock:
                used[name] -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, ["large.png", "small.png"] * 6))
    assert most["large.png"] == 1
    assert most["small.png"] > 1


HOLDING = """
import os, sys
from gradcam_kit.jobs.sources import reading
reading._LARGE = 100
with reading.picture_of(reading.Entry("large.png", "large.png")):
    print("held", flush=True)
    sys.stdin.read()
    os._exit(1)
"""


def test_a_large_picture_of_another_process_is_waited_for_until_that_has_ended_or_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk.write_picture(Path("large.png"), disk.CAT)
    monkeypatch.setattr(reading, "_LARGE", 100)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pipe, entered = subprocess.PIPE, Event()
    process = subprocess.Popen([sys.executable, "-c", HOLDING], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"

    def use() -> None:
        with picture_of(Entry("large.png", "large.png")):
            entered.set()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(use)
        waited = not entered.wait(0.3)
        process.communicate()
        assert entered.wait(30)
    assert waited


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pictures_that_are_converted_band_by_band_are_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(disk.COFFEE[:, :70]).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    whole = rgb_picture(image)
    monkeypatch.setattr(pictures, "_BAND", 3 * 70)
    assert np.array_equal(rgb_picture(image), whole)


MEASURED = """
from gradcam_kit.pixels.decoding import read_picture

def used():  # at most so far, in bytes; what getrusage tells includes the process that started this one
    return 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])

read_picture("small.png")
before = used()
read_picture("large.png")
print((used() - before) / 6000**2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the most memory that was used")
def test_reading_takes_little_more_memory_than_the_picture_itself() -> None:
    disk.write_picture(Path("small.png"), disk.CAT)
    Image.new("RGB", (6000, 6000), (9, 9, 9)).save("large.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MEASURED], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 9  # bytes per pixel: 3 of its own and 4 of PIL's
