"""Compare runs with bare loops, measure memory and time as a folder grows, and plan a million paths."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torchvision import models

from benchmarks.measure import SkippedError, peak_mb, reason
from benchmarks.options import Out, Quick, Rounds, Threads
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED
from gradcam_kit.jobs import RunRequest
from gradcam_kit.jobs.engines.local import Pipeline
from gradcam_kit.jobs.sources.plan import make_plan
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.loading import make_explainer
from gradcam_kit.pixels.decoding import read_picture
from gradcam_kit.pixels.pictures import write_picture
from gradcam_kit.transforms import IMAGENET

SIZES = ((480, 640), (768, 1024), (1024, 768), (333, 500), (224, 224), (1080, 1920))
BATCH = 32
GROWTH = (1, 10, 50)
BARE, GROWING, PLANNING = "decode and forward pass, no heatmaps", "run of the bundled model", "planning"


def run(
    pictures: Annotated[int, typer.Option(help="number of JPEGs of mixed sizes", min=1)] = 2000,
    growth: Annotated[int, typer.Option(help="number of pictures in the smallest of the growing runs")] = 2000,
    paths: Annotated[int, typer.Option(help="number of planned paths")] = 1_000_000,
    rounds: Rounds = 3,
    threads: Threads = 2,
    out: Out = None,
    quick: Quick = False,
) -> None:
    """Compare runs with bare loops on ResNet-50, measure memory and time as a folder grows, and time planning."""
    if quick:
        pictures, growth, paths, rounds = 4, 20, 1000, 1
    settings = {"seed": SEED, "pictures": pictures, "growth": growth, "paths": paths, "rounds": rounds, "batch": BATCH}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = chain(
            attempt({"work": BARE}, partial(loop_rows, root, pictures, rounds)),
            attempt({"work": GROWING, "pictures": growth}, partial(growth_rows, root, growth)),
            attempt({"work": PLANNING, "pictures": paths}, partial(planning_row, root, paths)),
        )
        record("runs", "cpu", rows, threads=threads, out=out, quick=quick, **settings)


def draw(folder: Path, count: int) -> None:
    """Write JPEGs of mixed sizes, with smooth random structure."""
    generator = np.random.default_rng(SEED)
    folder.mkdir()
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        small = generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:06}.jpg", quality=90)


def loop_rows(root: Path, pictures: int, rounds: int) -> Iterator[Row]:
    """Yield rows for runs and loops, which are interleaved; ratios are relative to the bare loop of the same round."""
    draw(root / "pictures", pictures)
    request = RunRequest("torchvision:resnet50", source=str(root / "pictures"), layers=("layer4",), processes=True)
    plan = make_plan(request.source, "", 1000)
    explainer = make_explainer(request, request.methods, plan.entries())
    files = [entry.path for entry in plan.entries()]
    works: dict[str, Callable[[], None]] = {
        BARE: lambda: bare(explainer, files),
        "decode only": lambda: decode_only(files),
        "run, no overlays": lambda: ours(request, explainer, root / "out", 0),
        "run, all overlays": lambda: ours(request, explainer, root / "out", None),
        "loop with pytorch-grad-cam and its overlay": lambda: theirs(files, root / "theirs"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    skipped: dict[str, str] = {}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            try:
                work()
            except Exception as error:  # a work that fails must not end the measurement of other works
                skipped[name] = reason(error)
            seconds[name].append(time.perf_counter() - start)
    plan.close()
    for name, times in seconds.items():
        if cause := skipped.get(name) or skipped.get(BARE):
            yield Row({"work": name}, skipped=cause)
            continue
        figures = {
            "pictures_per_second": Figure.of(len(files) / each for each in times),
            "ratio": Figure.of(mine / bare_ for mine, bare_ in zip(times, seconds[BARE], strict=True)),
        }
        yield Row({"work": name}, figures, beside="" if name == BARE else BARE)


def bare(explainer: Explainer, files: Sequence[str]) -> None:
    """Read the pictures in one thread, and run the model on batches of them."""
    for start in range(0, len(files), BATCH):
        images = torch.stack([IMAGENET(read_picture(path)) for path in files[start : start + BATCH]])
        with torch.inference_mode():
            explainer.model(images)


def decode_only(files: Sequence[str]) -> None:
    """Read and prepare pictures, without a model."""
    for path in files:
        IMAGENET(read_picture(path))


def ours(request: RunRequest, explainer: Explainer, out: Path, overlays: int | None) -> None:
    """Do everything that a run does after the model is loaded."""
    asked = RunRequest(**{**vars(request), "out": str(out), "overlays": overlays})
    shutil.rmtree(out, ignore_errors=True)
    plan = make_plan(asked.source, asked.out, asked.shard_size)
    pipeline = Pipeline(asked, explainer, Store.at(asked.out), plan.pictures)
    list(pipeline.work(map(plan.shard, range(plan.shards))))
    plan.close()


def theirs(files: Sequence[str], out: Path) -> None:
    """Explain one picture after another, as the examples of pytorch-grad-cam do."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image

    torch.manual_seed(0)
    model = models.resnet50().eval()
    out.mkdir(exist_ok=True)
    with GradCAM(model=model, target_layers=[model.layer4[-1]]) as cam:
        for path in files:
            picture = read_picture(path)
            heatmap = cam(input_tensor=IMAGENET(picture)[None], targets=None)[0]
            height, width = picture.shape[:2]
            large = np.asarray(Image.fromarray(heatmap).resize((width, height), Image.Resampling.BILINEAR))
            drawn = show_cam_on_image(picture.astype(np.float32) / 255, large, use_rgb=True)
            write_picture(out / f"{Path(path).stem}.jpg", drawn)


def growth_rows(root: Path, count: int) -> Iterator[Row]:
    """Yield rows for runs of the bundled model on 1, 10 and 50 times `count` pictures, each in a fresh process."""
    measured: list[Mapping[str, float]] = []
    for factor in GROWTH:
        folder = root / f"times{factor}"
        folder.mkdir()
        originals = [write_small(root, i) for i in range(20)] if factor == 1 else sorted((root / "small").iterdir())
        for i in range(count * factor):
            (folder / f"{i:08}.jpg").hardlink_to(originals[i % len(originals)])
        arguments = [str(folder), "--model", "demo", "--out", str(root / f"run{factor}"), "--overlays", "none"]
        measured.append(in_process("run", [*arguments, "--no-report", "--thumbnails", "0", "--shard-size", "500"]))
        figures = {name: Figure.of([value]) for name, value in measured[-1].items()}
        if factor > 1:
            per_picture = measured[-1]["seconds"] / measured[0]["seconds"] / factor
            figures["memory_growth"] = Figure.of([measured[-1]["peak_mb"] / measured[0]["peak_mb"]])
            figures["time_per_picture_growth"] = Figure.of([per_picture])
        yield Row({"work": GROWING, "pictures": count * factor}, figures)


def write_small(root: Path, index: int) -> Path:
    """Write one of the pictures to which the growing folders link."""
    path = root / "small" / f"{index}.jpg"
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((160, 128), Image.Resampling.BICUBIC).save(path)
    return path


def planning_row(root: Path, paths: int) -> list[Row]:
    """Return a row for planning a list file with many paths, none of which is opened."""
    listed = root / "many.txt"
    with listed.open("w") as file:
        file.writelines(f"pictures/{i * 7919 % paths:09}.jpg\n" for i in range(paths))
    measured = in_process("plan", [str(listed)])
    figures = {name: Figure.of([value]) for name, value in measured.items()}
    return [Row({"work": PLANNING, "pictures": paths}, figures)]


def in_process(what: str, arguments: Sequence[str]) -> dict[str, float]:
    """Run a work in a fresh process; return its seconds, start of the interpreter excluded, and its peak MiB.

    Raises:
        SkippedError: the process failed.
    """
    code = f"from benchmarks.runs import child; child({what!r}, {list(arguments)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SkippedError((done.stderr.strip() or f"ended with status {done.returncode}").splitlines()[-1])
    seconds, peak = map(float, done.stdout.splitlines()[-1].split())
    return {"seconds": seconds, "peak_mb": peak}


def child(what: str, arguments: list[str]) -> None:
    """Do the work of `in_process`, and print the seconds and the peak memory."""
    from typer.testing import CliRunner

    from gradcam_kit.cli import app

    start = time.perf_counter()
    if what == "plan":
        make_plan(arguments[0], "", 1000).close()
    else:
        result: Any = CliRunner().invoke(app, ["run", *arguments, "--workers", "2"])
        assert result.exit_code == 0, result.output
    seconds = time.perf_counter() - start
    print(seconds, peak_mb())
