"""Measure large batches and half precision on a GPU, and whether calls wait for the device only at their end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from unittest.mock import patch

import torch

import gradcam_kit
from benchmarks.measure import Work, interleave, reason
from benchmarks.methods import Layers
from benchmarks.options import Out, Quick, Rounds
from benchmarks.ratios import LAYER, MODEL, forward_of, row, rows_beside, shared
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED, build_images, build_model, forward
from gradcam_kit import METHODS

ONE, TEN = "GradCAM", "ten gradient methods, explain_all"
BATCH = 64
CHUNKS = (64, 128, 256, 512)
"""Numbers of rows in one forward pass of Score-CAM; each of them is measured."""

ALONE = "without waiting for the device before its end"
"""Suffix of the works that state for one method whether its calls wait for the device."""


def run(rounds: Rounds = 7, out: Out = None, quick: Quick = False) -> None:
    """Measure large batches, Score-CAM in bfloat16, and which methods wait for the device early; needs a GPU."""
    batch, side, rounds = (2, 64, 1) if quick else (BATCH, 224, rounds)
    waiting = attempt({"model": "resnet18", "work": f"all {ALONE}"}, partial(waiting_rows, side))
    rows = chain(batch_rows(batch, side, rounds), score_cam_rows(side, rounds), waiting)
    record("cuda", "cuda", rows, out=out, quick=quick, seed=SEED, rounds=rounds)


def batch_rows(batch: int, side: int, rounds: int) -> Iterator[Row]:
    """Yield rows for Grad-CAM, ten gradient methods and EinsumCAM on ResNet-50, by precision and memory format."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            setting = f"{MODEL}, batch {batch}, {str(dtype)[6:]}, {str(layout)[6:]}"
            measured = partial(_batch_rows, setting, batch, side, rounds, dtype, layout)
            yield from attempt({"model": setting, "work": "all"}, measured)


def _batch_rows(
    setting: str, batch: int, side: int, rounds: int, dtype: torch.dtype, layout: torch.memory_format
) -> Iterator[Row]:
    model = build_model(MODEL, "cuda", dtype).to(memory_format=layout)
    images = build_images(batch, "cuda", dtype, side).contiguous(memory_format=layout)
    cams, einsum = shared(model), gradcam_kit.EinsumCAM(model, LAYER)
    plain = forward_of(batch, side)
    works: dict[str, Work] = {
        plain: forward(model, images),
        ONE: lambda: cams[0](images),
        TEN: lambda: gradcam_kit.explain_all(cams, images),
        "EinsumCAM": lambda: einsum(images),
    }
    runs = interleave(works, rounds)
    yield from rows_beside(setting, runs, plain)
    yield row(setting, f"{TEN} / {ONE}", runs[TEN], runs[ONE], ONE)


def score_cam_rows(side: int, rounds: int) -> Iterator[Row]:
    """Yield rows for Score-CAM on one image with ResNet-50 in bfloat16, compared with one pass of as many rows."""
    for chunk in CHUNKS:
        setting = f"{MODEL}, bfloat16, channels_last, {chunk} rows at a time"
        yield from attempt({"model": setting, "work": "all"}, partial(_score_cam_rows, setting, chunk, side, rounds))


def _score_cam_rows(setting: str, chunk: int, side: int, rounds: int) -> Iterator[Row]:
    model = build_model(MODEL, "cuda", torch.bfloat16).to(memory_format=torch.channels_last)
    images = build_images(1, "cuda", torch.bfloat16, side)
    cam: Work = partial(gradcam_kit.ScoreCAM(model, LAYER, batch_size=chunk), images)
    many = images.expand(chunk, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    plain = forward_of(chunk, side)
    yield from rows_beside(setting, interleave({plain: forward(model, many), "ScoreCAM": cam}, rounds), plain)


def waiting_rows(side: int) -> Iterator[Row]:
    """Yield a row per method: 1 if a call waits for the device only once, at its end; 0 if it waits more often.

    Each earlier wait leaves the device idle.
    """
    model, images = build_model("resnet18", "cuda"), build_images(2, "cuda", side=side)
    layers = Layers(model, images)
    for method in METHODS:
        case = {"model": "resnet18", "work": f"{method} {ALONE}"}
        yield from attempt(case, partial(_waiting_row, case, method, layers))


def _waiting_row(case: Mapping[str, str], method: str, layers: Layers) -> list[Row]:
    cam = METHODS[method](layers.network, layers.of(method))
    cam(layers.images)  # the first call may wait, for example to choose kernels
    waits, waited = _waits(partial(cam, layers.images))
    free = float(not waited and waits == 1)
    return [Row(case, {"share": Figure(free, free, free)}, note=waited or f"waits: {waits}")]


def _waits(work: Work) -> tuple[int, str]:
    """Return the number of waits for CUDA events, and the error of the first wait of another kind, or ""."""
    waits, synchronize = [], torch.cuda.Event.synchronize

    def counted(event: torch.cuda.Event) -> None:
        waits.append(event)
        synchronize(event)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        with patch.object(torch.cuda.Event, "synchronize", counted):  # the mode does not detect waits for events
            work()
    except Exception as error:
        return len(waits), reason(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(waits), ""
