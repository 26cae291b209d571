"""A run: what is missing is planned, given to an engine shard by shard, and counted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from gradcam_kit.capture import compile_around
from gradcam_kit.errors import GradCamKitError, exits_refused
from gradcam_kit.jobs.engines.devices import work_on_devices
from gradcam_kit.jobs.engines.local import Done, FirstFailureError, Pipeline
from gradcam_kit.jobs.progress import ProgressBar
from gradcam_kit.jobs.request import SHOWN, RunRequest, RunSummary
from gradcam_kit.jobs.sources.plan import Plan, Shard, make_plan
from gradcam_kit.jobs.sources.reading import decoders_quiet
from gradcam_kit.jobs.storage.counts import Counts
from gradcam_kit.jobs.storage.manifest import check_same
from gradcam_kit.jobs.storage.ownership import check_inputs_stay
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.loading import TRIED, device_names, layers_of, make_explainer, note, verify
from gradcam_kit.jobs.work.manifest import make_manifest
from gradcam_kit.jobs.work.measuring import chosen_metrics, metric_fields


@dataclass
class _Tally:
    """What is known about the pictures of a run."""

    pictures: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, counts: Counts) -> None:
        self.pictures += counts.pictures
        self.failed += counts.failed
        self.problems = [*self.problems, *counts.problems][:SHOWN]

    def add_shard(self, store: Store, number: int, counts: Counts) -> None:
        """Add a shard that is there; its failures are read only as long as they would be shown."""
        self.add(store.counts(number) if counts.failed and len(self.problems) < SHOWN else counts)


@exits_refused()
def run(request: RunRequest, console: Console | None = None) -> RunSummary:
    """Explain all pictures of a source that are not explained yet, and leave rows and overlays in a folder.

    Args:
        request: what is asked for.
        console: where notes about the model and, on a terminal, the progress are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is wrong; the folder is as it was.
    """
    start = time.monotonic()
    console = console or Console(quiet=True)
    metrics = chosen_metrics(request.metrics)
    store = Store.at(request.out, metric_fields(request.metrics))
    there = store.check_free(map(_file_part, request.methods), request.overwrite)
    before = None if request.overwrite else there
    with ExitStack() as stack:
        stack.enter_context(decoders_quiet())
        plan = stack.enter_context(closing(make_plan(request.source, request.out, request.shard_size)))
        if request.overwrite and there is not None:
            check_inputs_stay(store.folder, _inputs(request, plan))
        for line in plan.left_out.lines():
            note(console, line)
        explainer = replace(make_explainer(request, request.methods, plan.entries(), console), metrics=metrics)
        request = replace(request, scores=explainer.scores)  # what is decided once holds for all workers
        if request.targets != "label" and (unknown := explainer.labels.unknown(plan.entries())) is not None:
            note(console, unknown)  # as targets they are error rows
        explainer.fit.say = lambda text: note(console, text)
        manifest = make_manifest(request, explainer, plan)
        if before is not None:
            check_same(before, manifest, request.out)
        mine = range(request.part[0], plan.shards, request.part[1])
        known = store.complete() if before is not None else {}
        whole = store.sound(number for number in mine if number in known)
        if damaged := [number for number in mine if number in known and number not in whole]:
            note(
                console,
                f"{len(damaged)} shards are damaged and are made again, such as {store.shard_place(damaged[0])}",
            )
            known = {number: counts for number, counts in known.items() if number not in damaged}
        tally, again = _planned(request, store, {number: known[number] for number in mine if number in known})
        explained_before = tally.pictures
        if explained_before:
            note(console, f"{explained_before} pictures are explained already; going on with the others")
        todo = [number for number in mine if number in again or number not in known]
        written: set[int] = set()
        interrupted, begun = False, not request.overwrite

        def begin() -> None:
            nonlocal begun
            store.begin(manifest, request.overwrite)
            begun = True

        if todo:
            total = sum(known[n].failed if n in again else _pictures(plan, [n]) for n in todo)
            bar = stack.enter_context(ProgressBar(console, total))
            shards = (_shard(plan, store, number, number in again) for number in todo)
            first = [] if before is not None else list(islice(plan.entries(), TRIED))  # what worked once is no mistake
            engine = _Engine(
                *(request, explainer, store, plan),
                verify=lambda: verify(explainer, first),
                begin=begin,
                progress=bar.add,
            )
            try:
                with sigterm_as_interrupt(), closing(engine.work(shards, len(todo))) as finished:
                    for done in finished:
                        tally.add(done.counts)
                        written.add(done.number)
            except FirstFailureError as failure:
                tally = _found(store, [n for n in mine if n not in again or n in written])  # others are not tried yet
                tally.add(failure.counts)
            except KeyboardInterrupt:
                tally, interrupted = _found(store, mine) if begun else _Tally(), True
            except GradCamKitError as error:
                if not (request.overwrite and begun):
                    raise
                raise type(error)(f"{error}; leave out --overwrite to go on with what is written now") from error
        complete = {*known, *written}
        return RunSummary(
            request.out,
            tally.pictures,
            tally.failed,
            tuple(tally.problems),
            time.monotonic() - start,
            explained_before,
            plan.shards - len(complete) - (len(store.complete(but=complete)) if begun else 0),
            _pictures(plan, mine) - tally.pictures,
            interrupted,
            go_on="" if not begun else "without --overwrite" if request.overwrite else "again",
        )


def _inputs(request: RunRequest, plan: Plan) -> Iterator[str]:
    """The files and folders that a run reads."""
    yield request.source
    yield from (str(path) for path in (request.checkpoint, request.class_names) if isinstance(path, Path | str))
    yield from (entry.path for entry in plan.entries())


def _file_part(method: str) -> str:
    """What the names of overlays have of a method, as it is asked for."""
    return method.rpartition(":")[2]


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let a request to end, as schedulers send it, count as an interruption from the keyboard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _planned(request: RunRequest, store: Store, known: Mapping[int, Counts]) -> tuple[_Tally, set[int]]:
    """What is explained already, and the numbers of shards that are to be tried again."""
    tally, again = _Tally(), set()
    for number, counts in known.items():
        if counts.failed and request.retry_failed:
            again.add(number)
        else:
            tally.add_shard(store, number, counts)
    return tally, again


def _found(store: Store, numbers: Container[int]) -> _Tally:
    """What is in the shards of these numbers that are there, also those that nobody was told of before the end."""
    tally = _Tally()
    for number, counts in sorted(store.complete().items()):
        if number in numbers:
            tally.add_shard(store, number, counts)
    return tally


def _pictures(plan: Plan, numbers: Iterable[int]) -> int:
    """How many pictures are in some shards of a plan."""
    return sum(min(plan.shard_size, plan.pictures - number * plan.shard_size) for number in numbers)


def _shard(plan: Plan, store: Store, number: int, again: bool) -> Shard:
    shard = plan.shard(number)
    return shard.again(store.read_shard(number)) if again else shard


@dataclass(frozen=True)
class _Engine:
    """Who does the work."""

    request: RunRequest
    explainer: Explainer
    store: Store
    plan: Plan
    verify: Callable[[], None]
    begin: Callable[[], None]
    progress: Callable[[int, int], None]

    def work(self, shards: Iterable[Shard], count: int) -> Generator[Done, None, None]:
        """Write shards; yields each when it is there."""
        if self.request.engine == "ray":
            from gradcam_kit.jobs.engines.ray_engine import work_on_ray

            self.verify()
            yield from work_on_ray(self.request, self.explainer, self.plan, shards, self.begin, self.progress)
            return
        devices = device_names(self.request.device)
        if len(devices) > 1 and count > 1:
            self.verify()
            layers = layers_of(self.explainer)
            yield from work_on_devices(
                self.request, devices, layers, self.plan.pictures, shards, self.begin, self.progress
            )
            return
        if self.request.compile:
            compile_around(
                self.explainer.model, (name for names in layers_of(self.explainer).values() for name in names)
            )
        pipeline = Pipeline(
            *(self.request, self.explainer, self.store, self.plan.pictures),
            verify=self.verify,
            begin=self.begin,
            progress=self.progress,
        )
        with closing(pipeline.work(shards)) as finished:
            yield from finished
