"""Test which architectures work with default settings: automatic layer, shape of its map, side effects, time."""

from __future__ import annotations

import multiprocessing
import queue
import re
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.support_cases import LIBRARIES, Case, cases
from benchmarks.support_outcomes import IMAGES, Outcome
from gradcam_kit import GradCAM
from gradcam_kit.errors import GradCamKitError

QUICK = ("torchvision:resnet18", "torchvision:mobilenet_v3_small", "transformers:DeiTForImageClassificationWithTeacher")
_STARTING = 120.0
"""Seconds for importing a library, added to the time limit of the first case of this library in each process."""


def chosen_cases(only: str = "", quick: bool = False) -> list[Case]:
    """Return the cases of installed libraries whose names match a regular expression; `quick` keeps only `QUICK`."""
    wanted = {name.partition(":")[0] for name in QUICK} if quick else set(LIBRARIES)
    libraries = [library for library in LIBRARIES if library in wanted and find_spec(library)]
    found = [case for library in libraries for case in cases(library).values() if re.search(only, case.name)]
    return [case for case in found if case.name in QUICK] if quick else found


def explain(case: Case, most_parameters: int = 10**12) -> Outcome:
    """Explain seeded random images at the automatic layer, trying the sizes of the case until one succeeds."""
    warnings.simplefilter("ignore")  # warnings of other libraries are irrelevant here
    torch.manual_seed(0)
    try:
        model = case.build()
    except Exception as error:  # whatever an architecture raises becomes a row of the matrix
        return Outcome(case.name, case.family, "left out", f"cannot be built: {_line(error)}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > most_parameters:
        reason = f"more than {most_parameters / 1e6:.0f} million parameters"
        return Outcome(case.name, case.family, "left out", reason, parameters=parameters)
    _wake(model)
    for size in case.sizes:
        _calibrate(model, size)
        model.train()  # the call must switch to eval mode and back, which `_trace` checks
        outcome = _explain(case, model, size, parameters)
        if outcome.status == "ok":
            break
    return outcome


def _explain(case: Case, model: nn.Module, size: tuple[int, ...], parameters: int) -> Outcome:
    images = torch.rand(IMAGES, 3, *size, generator=torch.Generator().manual_seed(1))
    before = _trace(model)
    start = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        explanation = GradCAM(model).explain(images, case.targets)
        [layer] = explanation.layers
        saliency = explanation.saliency[layer]
        finite = bool(torch.isfinite(explanation.heatmaps).all() and torch.isfinite(saliency).all())
        flat = saliency.flatten(1)
        varies = bool((flat.amax(1) > flat.amin(1)).all())
        found = {"layer": layer, "shape": tuple(saliency.shape[1:]), "finite": finite, "varies": varies}
        status, reason = ("ok", "") if finite and varies else ("failed", "constant map" if finite else "not finite")
    except Exception as error:
        status, reason = ("refused" if isinstance(error, GradCamKitError) else "failed"), _line(error)
        if (own := _own_failure(model, images)) is not None:
            status, reason = "left out", f"the model itself does not run: {own}"
    seconds = round(time.perf_counter() - start, 2)
    traceless = _trace(model) == before
    if status == "ok" and not traceless:
        status, reason = "failed", "left a trace"
    return Outcome(
        case.name,
        case.family,
        status,
        reason,
        size=size,
        parameters=parameters,
        traceless=traceless,
        seconds=seconds,
        **found,
    )


def _own_failure(model: nn.Module, images: Tensor) -> str | None:
    """Return why the model fails even without an explanation; None if it succeeds."""
    try:
        with torch.no_grad():
            model.eval()(images)
    except Exception as error:
        return _line(error)
    finally:
        model.train()
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def _wake(model: nn.Module) -> None:
    """Replace weights that start as zeros, as in many heads and residual branches, with small random values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_weight = parameter.ndim > 1 or name.endswith(("weight", "gamma"))
            if is_weight and not bool(parameter.any()):
                parameter.copy_(
                    (0.02 if parameter.ndim > 1 else 0.5) * torch.randn(parameter.shape, generator=generator)
                )


def _calibrate(model: nn.Module, size: tuple[int, ...]) -> None:
    """Compute the statistics of batch norms from random images; the initial ones let signals vanish or explode."""
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        with torch.no_grad():
            model(torch.rand(IMAGES, 3, *size, generator=torch.Generator().manual_seed(1)))
    except Exception:  # the explanation will fail too, and report the reason
        pass
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value


def _trace(model: nn.Module) -> list[object]:
    """Return the state that a call must leave unchanged, as values that can be compared."""
    modules = [
        (
            module.training,
            [len(value) for key, value in vars(module).items() if "hook" in key and isinstance(value, dict)],
        )
        for module in model.modules()
    ]
    tensors = [
        (id(tensor), tensor._version, tensor.requires_grad, tensor.grad is None)
        for tensor in (*model.parameters(), *model.buffers())
    ]
    flags = (torch.is_grad_enabled(), torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled())
    return [modules, tensors, flags, torch.get_rng_state().tolist()]


def run(wanted: Iterable[Case], workers: int, seconds: float, most_parameters: int) -> Iterator[Outcome]:
    """Explain the cases in separate processes, so that a crash or a timeout ends one case and not the run."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for _ in range(workers):
        idle.put(_Worker())

    def measure(case: Case) -> Outcome:
        worker = idle.get()
        try:
            return worker.explain(case, seconds, most_parameters)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(measure, wanted)
        finally:
            pool.shutdown(cancel_futures=True)
            while not idle.empty():
                idle.get().stop()


@dataclass
class _Worker:
    """A process that explains one case after another, and is replaced after a crash or a timeout."""

    process: Any = None
    connection: Connection | None = None
    loaded: set[str] = field(default_factory=set)

    def explain(self, case: Case, seconds: float, most_parameters: int) -> Outcome:
        """Return the outcome of one case."""
        library = case.name.partition(":")[0]
        if self.process is None:
            self._start()
        assert self.connection is not None
        allowed = seconds + (0 if library in self.loaded else _STARTING)
        try:
            self.connection.send((case.name, most_parameters))
            if self.connection.poll(allowed):
                self.loaded.add(library)
                outcome: Outcome = self.connection.recv()
                return outcome
            reason = f"took more than {seconds:.0f} seconds"
        except (EOFError, OSError):
            self.process.join(10)
            reason = f"its process died with exit status {self.process.exitcode}"
        self.stop()
        return Outcome(case.name, case.family, "failed", reason)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, torch.get_num_threads()), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process, self.connection = None, None
        self.loaded.clear()


def _serve(connection: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    known: dict[str, Case] = {}
    while True:
        try:
            name, most_parameters = connection.recv()
        except EOFError:
            return
        if name not in known:
            known |= cases(name.partition(":")[0])
        connection.send(explain(known[name], most_parameters))
