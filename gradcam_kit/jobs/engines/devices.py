"""Run on several devices of one machine, with one process per device that takes shards from a queue."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import TYPE_CHECKING, Any

from gradcam_kit.capture import compile_around
from gradcam_kit.errors import CaptureError, InputError
from gradcam_kit.jobs.engines.local import Done, Pipeline, Progress
from gradcam_kit.jobs.request import RunRequest
from gradcam_kit.jobs.sources.plan import Shard
from gradcam_kit.jobs.storage.rows import method_name
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.loading import load_explainer
from gradcam_kit.jobs.work.measuring import chosen_metrics, metric_fields
from gradcam_kit.jobs.work.methods import make_method, method_classes
from gradcam_kit.jobs.work.processes import init_worker, sigint_blocked
from gradcam_kit.jobs.work.reader import ahead_of

if TYPE_CHECKING:
    from multiprocessing.queues import Queue


def work_on_devices(
    request: RunRequest,
    devices: Sequence[str],
    layers: Mapping[str, list[str]],
    pictures: int,
    shards: Iterable[Shard],
    begin: Callable[[], None],
    progress: Progress,
) -> Generator[Done, None, None]:
    """Let one process per device write shards; `layers` are the previously chosen layers of each method.

    Raises:
        GradCamKitError: a process failed or died.
    """
    context = multiprocessing.get_context("spawn")
    tasks: Queue[Shard | None] = context.Queue()
    answers: Queue[Done | tuple[int, int] | Exception] = context.Queue()
    threads = max(1, request.threads // len(devices))
    processes = []
    begin()
    try:
        for device in devices:
            own = replace(request, device=device, workers=threads, overwrite=False)
            arguments = (own, layers, pictures, os.getcwd(), tasks, answers)
            processes.append(context.Process(target=_serve, args=arguments))
            with sigint_blocked():
                processes[-1].start()
        # Each process reads batches ahead, and every batch may be from a different shard. With fewer queued shards, all
        # processes could wait for more.
        at_once = len(devices) * (ahead_of(request.batch_size, threads) + 3)
        waiting: Iterator[Shard | None] = chain(shards, [None] * len(devices))
        running = 0
        for shard in islice(waiting, at_once):
            tasks.put(shard)
            running += shard is not None
        while running:
            answer = _next_answer(answers, processes)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, tuple):
                progress(*answer)
                continue
            for shard in islice(waiting, 1):
                tasks.put(shard)
                running += shard is not None
            running -= 1
            yield answer
        for shard in waiting:
            tasks.put(shard)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        tasks.cancel_join_thread()


def _next_answer(answers: Any, processes: Sequence[BaseProcess]) -> Any:
    while True:
        # Look at the processes before the queue, so that the last answers of ended processes are not missed.
        ended = not any(process.is_alive() for process in processes)
        try:
            return answers.get(timeout=0.5)
        except Empty:
            dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if dead or ended:
                raise CaptureError(
                    f"the process of a device died (exit status {dead[0] if dead else 0}); run the same "
                    "command to resume"
                ) from None


def _serve(
    request: RunRequest, layers: Mapping[str, list[str]], pictures: int, folder: str, tasks: Any, answers: Any
) -> None:
    """Write shards in the process of a device until there are no more."""
    init_worker()
    sys.path.insert(0, folder)  # so that the user's modules can be imported
    try:
        explainer = replace(with_layers(request, layers), say=_print_note)

        def told(explained: int, failed: int) -> None:
            answers.put((explained, failed))

        store = Store.at(request.out, metric_fields(request.metrics))
        pipeline = Pipeline(request, explainer, store, pictures, progress=told)
        for done in pipeline.work(iter(tasks.get, None)):
            answers.put(done)
    except Exception as error:
        answers.put(error)


def _print_note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def with_layers(request: RunRequest, layers: Mapping[str, list[str]]) -> Explainer:
    """Return the explainer of a request, with layers that another process or an earlier run chose."""
    explainer = load_explainer(request)
    cams = []
    for method in method_classes(request.methods):
        name = method_name(make_method(method, explainer.model, None, request.batch_size))
        if name not in layers:
            raise InputError(
                f"the layers of {name} are missing; only the following methods have layers: {', '.join(layers)}"
            )
        at = layers[name] or None
        cams.append(make_method(method, explainer.model, at, request.batch_size, request.gradient_rule))
    explainer = replace(explainer, cams=tuple(cams), metrics=chosen_metrics(request.metrics))
    if request.compile:
        compile_around(explainer.model, (name for names in layers.values() for name in names))
    return explainer
