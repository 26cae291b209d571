"""What only a GPU shows: large batches, half precision, and calls that wait for the device at their end alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import torch

import gradcam_kit
from benchmarks.measure import Work, interleave, reason
from benchmarks.methods import FORWARD, Layers
from benchmarks.options import Out, Quick, Rounds
from benchmarks.ratios import LAYER, MODEL, row, shared
from benchmarks.results import Figure, Results, Row, environment, place_of
from benchmarks.works import SEED, build_images, build_model, forward
from gradcam_kit import METHODS

ONE, TEN = "GradCAM", "ten gradient methods, explain_all"
BATCH = 64
CHUNKS = (64, 128, 256, 512)
"""Rows in one forward pass of Score-CAM."""


def run(rounds: Rounds = 7, out: Out = None, quick: Quick = False) -> None:
    """Large batches, Score-CAM in bfloat16, and which methods wait for the device; without a GPU all is skipped."""
    if not torch.cuda.is_available():
        rows = [Row({"work": "all"}, skipped="no CUDA device is at hand")]
        Results("cuda", environment("cpu"), rows).finish(out)
        return
    batch, side = (2, 64) if quick else (BATCH, 224)
    rounds = 1 if quick else rounds
    rows = [*batch_rows(batch, side, rounds), *score_cam_rows(side, min(rounds, 3)), *waiting_rows(side)]
    settings = environment("cuda", seed=SEED, rounds=rounds)
    Results("cuda", settings, rows).finish(place_of("cuda", "cuda", out, quick))


def batch_rows(batch: int, side: int, rounds: int) -> Iterator[Row]:
    """Grad-CAM, the ten gradient methods and EinsumCAM on ResNet-50, in two precisions and two memory formats."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            setting = f"{MODEL}, batch {batch}, {str(dtype)[6:]}, {str(layout)[6:]}"
            runs = interleave(_batch_works(batch, side, dtype, layout), rounds)
            yield from (row(setting, name, timed, runs[FORWARD]) for name, timed in runs.items())
            yield row(setting, f"{TEN} / {ONE}", runs[TEN], runs[ONE])


def _batch_works(batch: int, side: int, dtype: torch.dtype, layout: torch.memory_format) -> dict[str, Work]:
    model = build_model(MODEL, "cuda", dtype).to(memory_format=layout)
    images = build_images(batch, "cuda", dtype, side).contiguous(memory_format=layout)
    cams, einsum = shared(model), gradcam_kit.EinsumCAM(model, LAYER)
    return {
        FORWARD: forward(model, images),
        ONE: lambda: cams[0](images),
        TEN: lambda: gradcam_kit.explain_all(cams, images),
        "EinsumCAM": lambda: einsum(images),
    }


def score_cam_rows(side: int, rounds: int) -> Iterator[Row]:
    """Exact Score-CAM of one image of ResNet-50 in bfloat16, by rows in a pass, beside a pass of so many images."""
    model = build_model(MODEL, "cuda", torch.bfloat16).to(memory_format=torch.channels_last)
    images = build_images(1, "cuda", torch.bfloat16, side)
    for chunk in CHUNKS:
        cam: Work = partial(gradcam_kit.ScoreCAM(model, LAYER, batch_size=chunk), images)
        many = images.expand(chunk, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        name = f"plain forward of {chunk} images"
        runs = interleave({name: forward(model, many), "ScoreCAM": cam}, rounds)
        setting = f"{MODEL}, bfloat16, channels_last, {chunk} rows at a time"
        yield from (row(setting, work, timed, runs[name]) for work, timed in runs.items())


def waiting_rows(side: int) -> Iterator[Row]:
    """Whether a call of each method waits for the device before its end, and so keeps it from being busy."""
    model, images = build_model("resnet18", "cuda"), build_images(2, "cuda", side=side)
    layers = Layers(model, images)
    for method in METHODS:
        work = f"{method} without waiting for the device before its end"
        case: dict[str, str | int] = {"model": "resnet18", "work": work}
        try:
            cam = METHODS[method](model, layers.of(method))
            cam(images)  # what happens once, such as choosing kernels, may wait
        except Exception as error:
            yield Row(case, skipped=reason(error))
            continue
        waits, waited = _waits(partial(cam, images))
        free = float(not waited and waits == 1)
        yield Row(case, {"share": Figure(free, free, free)}, note=waited or f"waits: {waits}")


def _waits(work: Work) -> tuple[int, str]:
    """How often some work waits in the way that is chosen, and the error of the first one of another kind."""
    waits, synchronize = [], torch.cuda.Event.synchronize

    def counted(event: torch.cuda.Event) -> None:
        waits.append(event)
        synchronize(event)

    torch.cuda.set_sync_debug_mode("error")
    try:
        with patch.object(torch.cuda.Event, "synchronize", counted):  # which the mode does not see
            work()
    except Exception as error:
        return len(waits), reason(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(waits), ""
