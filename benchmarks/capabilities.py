"""Measure the processor time of capabilities other than ModelDiagnostics, most of them relative to plain passes."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Work
from benchmarks.options import Out, Quick, Rounds, Threads
from benchmarks.results import Figure, Row
from benchmarks.suite import attempt, record
from benchmarks.works import SEED
from gradcam_kit import GradCAM, HeatmapLogger, analyze_mistakes, temporal_cam, two_tower_cam
from gradcam_kit.demo.data import draw_batches
from gradcam_kit.demo.network import load_demo_model
from gradcam_kit.diagnostics import (
    CsvWriter,
    JsonWriter,
    TensorBoardWriter,
    capture_attention,
    compare_data,
    compare_models,
    graph_attention,
    layer_importance,
    project,
    pyramid_levels,
    trace_recurrent,
)

CLASSES, IMAGES = 8, 64


@dataclass(frozen=True)
class Capability:
    """Works that are timed in alternation.

    Attributes:
        plain: name of the work with which all other works are compared; "" = report only seconds.
        works: the works by name, including `plain`.
        close: function that releases the resources of the works after the timing.
    """

    plain: str
    works: Mapping[str, Work]
    close: Callable[[], object] = lambda: None


def run(rounds: Rounds = 5, threads: Threads = 1, out: Out = None, quick: Quick = False) -> None:
    """Measure the processor time of each capability and, where possible, its ratio to the time of a plain pass."""
    if quick:
        rounds = 1
    rows = chain.from_iterable(
        attempt({"work": name}, partial(capability_rows, name, build, rounds)) for name, build in CAPABILITIES.items()
    )
    record(
        "capabilities",
        "cpu",
        rows,
        threads=threads,
        out=out,
        quick=quick,
        seed=SEED,
        rounds=rounds,
        load=os.getloadavg()[0],
    )


def capability_rows(name: str, build: Callable[[], Capability], rounds: int) -> Iterator[Row]:
    """Yield a row per work except the plain one, with processor seconds and, if there is a plain one, the ratio to it.

    The works are timed in alternation. Processor time is the measure that other processes disturb least. The first call
    of each work is not timed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made = build()
        try:
            times = _times(made.works, rounds)
        finally:
            made.close()
    for work, own in times.items():
        if work != made.plain:
            figures = {"seconds": Figure.of(own)}
            if made.plain:
                figures["ratio"] = Figure.of(a / b for a, b in zip(own, times[made.plain], strict=True))
            yield Row({"capability": name, "work": work}, figures, beside=made.plain)


def _times(works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return work -> processor time in seconds, one value for each round."""
    for run_once in works.values():
        run_once()
    times: dict[str, list[float]] = {work: [] for work in works}
    for _ in range(rounds):
        for work, run_once in works.items():
            start = time.process_time()
            run_once()
            times[work].append(time.process_time() - start)
    return times


def _demo() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    batches = draw_batches(range(9_000, 9_000 + IMAGES), 32)
    return load_demo_model().eval(), [(batch.images, torch.as_tensor(batch.labels)) for batch in batches]


def _passes(model: Callable[..., Any], loader: list[tuple[Tensor, Tensor]]) -> Work:
    def work() -> None:
        with torch.no_grad():
            for images, _ in loader:
                model(images)

    return work


def comparisons() -> Capability:
    model, loader = _demo()
    images = torch.cat([batch for batch, _ in loader])
    other, blocks = copy.deepcopy(model), ["layer1", "layer2", "layer3", "layer4", "fc"]
    plain = f"forward passes of {IMAGES} images"
    works: dict[str, Work] = {
        plain: _passes(model, loader),
        "compare_models, 5 layers": lambda: compare_models(model, other, images, blocks),
        "compare_data, 5 layers, 2 x 32 images": lambda: compare_data(model, images[:32], images[32:], blocks),
        "analyze_mistakes, Grad-CAM": lambda: analyze_mistakes(model, loader, cam="grad-cam"),
    }
    for method in ("activation", "gradient", "taylor", "ablation"):
        works[f"layer_importance, {method}, layer4"] = partial(
            layer_importance, model, loader, method, layers=["layer4"]
        )
    return Capability(plain, works)


def embeddings() -> Capability:
    points, labels = torch.randn(200, 64), torch.arange(200) % CLASSES
    methods = ("pca", "tsne")
    return Capability(
        "", {f"project, {one}, 200 x 64": partial(project, points, labels, method=one) for one in methods}
    )


def attention() -> Capability:
    create: Any = import_module("timm").create_model
    model, images = create("vit_tiny_patch16_224", num_classes=CLASSES, depth=6).eval(), torch.randn(4, 3, 224, 224)
    plain = "a fused forward pass of 4 images"

    def captured() -> None:
        with torch.no_grad(), capture_attention(model):
            model(images)

    return Capability(
        plain,
        {plain: _passes(model, [(images, images)]), "capture_attention, 6 layers of 3 heads": captured},
    )


def recurrent() -> Capability:
    model, inputs = nn.LSTM(64, 128, num_layers=2, batch_first=True).eval(), torch.randn(16, 32, 64)
    plain = "a fused forward pass of 32 steps"

    def traced() -> None:
        with torch.no_grad():
            trace_recurrent(model, inputs)

    return Capability(plain, {plain: _passes(model, [(inputs, inputs)]), "trace_recurrent, 2 layers": traced})


def graphs() -> Capability:
    conv: Any = import_module("torch_geometric.nn").GATConv
    model, x, edges = conv(32, 32, heads=4).eval(), torch.randn(2000, 32), torch.randint(0, 2000, (2, 20_000))
    plain = "a forward pass of 20,000 edges"

    def forward() -> None:
        with torch.no_grad():
            model(x, edges)

    return Capability(plain, {plain: forward, "graph_attention": lambda: graph_attention(model, x, edges)})


class Clips(nn.Module):
    """A CNN over frames, followed by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()))
        self.lstm, self.head = nn.LSTM(32, 32, batch_first=True), nn.Linear(32, CLASSES)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.conv(clip.flatten(0, 1)).mean((2, 3)).unflatten(0, clip.shape[:2])
        return self.head(self.lstm(frames)[0][:, -1])  # type: ignore[no-any-return]


def clips() -> Capability:
    model, inputs = Clips().eval(), torch.randn(2, 8, 3, 64, 64)
    plain = "a forward pass of 2 clips of 8 frames"
    return Capability(
        plain,
        {plain: _passes(model, [(inputs, inputs)]), "temporal_cam": lambda: temporal_cam(model, inputs, "conv")},
    )


class Words(nn.Module):
    """A text tower that averages embedded words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.words(tokens).mean(1)  # type: ignore[no-any-return]


def towers() -> Capability:
    image_tower = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).eval()
    text_tower, images, tokens = Words().eval(), torch.randn(8, 3, 64, 64), torch.randint(0, 100, (8, 12))
    plain = "a forward pass of both towers"

    def forward() -> None:
        with torch.no_grad():
            image_tower(images), text_tower(tokens)

    return Capability(
        plain, {plain: forward, "two_tower_cam": lambda: two_tower_cam(image_tower, text_tower, images, tokens)}
    )


def pyramid() -> Capability:
    detection: Any = import_module("torchvision.models.detection")
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    images = torch.rand(2, 3, 320, 320)
    plain = "a forward pass of 2 images"
    return Capability(
        plain,
        {plain: _passes(model, [(images, images)]), "pyramid_levels, SSDlite": lambda: pyramid_levels(model, images)},
    )


def film() -> Capability:
    model, loader = _demo()
    images = loader[0][0][:4]
    heatmaps = HeatmapLogger(GradCAM(model), images, every=1)
    plain = "a forward pass of 4 images"
    return Capability(plain, {plain: _passes(model, [(images, images)]), "HeatmapLogger, one frame": heatmaps.step})


def writers() -> Capability:
    """Return works that write one window of 60 layers: 180 numbers and 120 histograms with 60 bins each."""
    edges, counts = np.linspace(-3, 3, 61), np.arange(60)
    steps = iter(range(10**6))

    def window(writer: Any) -> None:
        step = next(steps)
        for i in range(180):
            writer.scalar(f"layer{i}/mean", 0.5, step)
        for i in range(120):
            writer.histogram(f"layer{i}", edges, counts, step)

    kinds: dict[str, Callable[[str], Any]] = {
        "CsvWriter": CsvWriter, "JsonWriter": JsonWriter, "TensorBoardWriter": TensorBoardWriter,
    }  # fmt: skip
    with ExitStack() as stack:
        works: dict[str, Work] = {}
        for name, kind in kinds.items():
            writer = kind(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(writer.close)
            works[f"{name}, a window of 60 layers"] = partial(window, writer)
        return Capability("", works, stack.pop_all().close)


CAPABILITIES: Mapping[str, Callable[[], Capability]] = {
    "comparisons": comparisons,
    "embeddings": embeddings,
    "attention": attention,
    "sequences": recurrent,
    "graphs": graphs,
    "clips": clips,
    "towers": towers,
    "detectors": pyramid,
    "films": film,
    "writers": writers,
}
