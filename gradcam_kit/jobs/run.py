"""A run in four steps: prepare the request, find the missing shards, write them, and summarize."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any

from rich.console import Console

from gradcam_kit.errors import GradCamKitError, exits_refused
from gradcam_kit.jobs.engines.choice import write_shards
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
from gradcam_kit.jobs.work.loading import TRIED, make_explainer, note, verify
from gradcam_kit.jobs.work.manifest import make_manifest
from gradcam_kit.jobs.work.measuring import chosen_metrics, metric_fields
from gradcam_kit.jobs.work.processes import interruptions_told


@exits_refused()
def run(request: RunRequest, console: Console | None = None) -> RunSummary:
    """Explain all pictures of a source that are not explained yet, and write rows and overlays into a folder.

    Args:
        request: the options of the run.
        console: where notes about the model and, on a terminal, progress are shown; None = nowhere.

    Raises:
        GradCamKitError: the request is invalid, in which case the folder is unchanged; or the disk or a device failed.
    """
    start = time.monotonic()
    with decoders_quiet(), closing(_prepare(request, console or Console(quiet=True))) as prepared:
        todo = _find_todo(prepared)
        return _sum_up(todo, _work(todo), start)


@dataclass(frozen=True)
class _Prepared:
    """A request whose pictures are listed and whose model is loaded.

    Attributes:
        request: the request with the detected kind of the scores, so that all workers use the same kind.
        console: terminal of the user.
        store: the folder of the run.
        plan: the pictures, cut into shards.
        explainer: the model and its methods.
        manifest: everything that determines the rows.
        goes_on: whether the folder already holds this run.
    """

    request: RunRequest
    console: Console
    store: Store
    plan: Plan
    explainer: Explainer
    manifest: Mapping[str, Any]
    goes_on: bool

    @property
    def mine(self) -> range:
        """The shards of this part of the run."""
        part, parts = self.request.part
        return range(part, self.plan.shards, parts)

    def pictures(self, numbers: Iterable[int]) -> int:
        """Return the number of pictures in the given shards."""
        size = self.plan.shard_size
        return sum(min(size, self.plan.pictures - number * size) for number in numbers)

    def close(self) -> None:
        self.plan.close()


@dataclass
class _Tally:
    """Counts of a run's pictures, updated shard by shard."""

    pictures: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, counts: Counts) -> None:
        self.pictures += counts.pictures
        self.failed += counts.failed
        self.problems = [*self.problems, *counts.problems][:SHOWN]

    def add_shard(self, store: Store, number: int, counts: Counts) -> None:
        """Add the counts of an existing shard, and read its failures only if they would be shown."""
        self.add(store.counts(number) if counts.failed and len(self.problems) < SHOWN else counts)


@dataclass(frozen=True)
class _Todo:
    """The remaining work of this part of a run.

    Attributes:
        known: the counts of each complete shard of all parts, by its number.
        again: numbers of the complete shards of this part whose failures are retried.
        tally: counts of the pictures in complete shards, except shards to retry.
    """

    prepared: _Prepared
    known: Mapping[int, Counts]
    again: frozenset[int]
    tally: _Tally

    @property
    def numbers(self) -> list[int]:
        """The shards to be written, in order."""
        return [number for number in self.prepared.mine if number in self.again or number not in self.known]

    @property
    def pictures(self) -> int:
        """The number of pictures to be explained."""
        known, again = self.known, self.again
        return sum(known[one].failed if one in again else self.prepared.pictures([one]) for one in self.numbers)

    def shards(self) -> Iterator[Shard]:
        """Yield the shards to be written; a shard to retry contains only its failed pictures."""
        for number in self.numbers:
            shard = self.prepared.plan.shard(number)
            yield shard.again(self.prepared.store.read_shard(number)) if number in self.again else shard


@dataclass
class _Work:
    """What this call has finished so far.

    Attributes:
        tally: counts of all explained pictures of this part.
        begun: False until `overwrite` has replaced the earlier run; always True without `overwrite`.
        written: the numbers of shards that were written.
        interrupted: whether the work was interrupted.
    """

    todo: _Todo
    tally: _Tally
    begun: bool
    written: set[int] = field(default_factory=set)
    interrupted: bool = False

    def begin(self) -> None:
        """Begin the run in its folder."""
        prepared = self.todo.prepared
        prepared.store.begin(prepared.manifest, prepared.request.overwrite)
        self.begun = True

    def add(self, done: Done) -> None:
        """Count a shard that was written."""
        self.tally.add(done.counts)
        self.written.add(done.number)


def _prepare(request: RunRequest, console: Console) -> _Prepared:
    """Check the folder, list the pictures, load the model, and make the manifest.

    Raises:
        GradCamKitError: the request is invalid, or the folder holds another run.
    """
    metrics = chosen_metrics(request.metrics)
    store = Store.at(request.out, metric_fields(request.metrics))
    classes = [method.rpartition(":")[2] for method in request.methods]  # overlays are named after the class
    there = store.check_free(classes, request.overwrite)
    with ExitStack() as unfinished:
        plan = unfinished.enter_context(closing(make_plan(request.source, request.out, request.shard_size)))
        if request.overwrite and there is not None:
            paths = (entry.path for entry in plan.entries())
            check_inputs_stay(store.folder, chain([request.source], request.files, paths))
        for line in plan.left_out.lines():
            note(console, line)
        explainer = make_explainer(request, request.methods, plan.entries(), console)
        explainer = replace(explainer, metrics=metrics, say=partial(note, console))
        request = replace(request, scores=explainer.scores)
        if request.targets != "label" and (unknown := explainer.labels.unknown(plan.entries())) is not None:
            note(console, unknown)  # with labels as targets, pictures with unknown labels get error rows
        manifest = make_manifest(request, explainer, plan)
        goes_on = there is not None and not request.overwrite
        if there is not None and goes_on:
            check_same(there, manifest, request.out)
        unfinished.pop_all()  # from here on the returned object closes the plan
    return _Prepared(request, console, store, plan, explainer, manifest, goes_on)


def _find_todo(prepared: _Prepared) -> _Todo:
    """Find the complete shards, and the shards whose failed pictures are to be retried."""
    store, mine = prepared.store, prepared.mine
    complete = store.complete() if prepared.goes_on else {}
    own = [number for number in mine if number in complete]
    sound = store.sound(own)
    if damaged := [number for number in own if number not in sound]:
        place = store.shard_place(damaged[0])
        note(prepared.console, f"rebuilding damaged shards ({len(damaged)}), such as {place}")
    known = {number: counts for number, counts in complete.items() if number not in damaged}
    retried = prepared.request.retry_failed
    again = frozenset(number for number in own if number in known and known[number].failed and retried)
    tally = _Tally()
    for number in own:
        if number in known and number not in again:
            tally.add_shard(store, number, known[number])
    if tally.pictures:
        note(prepared.console, f"pictures already explained: {tally.pictures}; continuing with the others")
    return _Todo(prepared, known, again, tally)


def _work(todo: _Todo) -> _Work:
    """Let an engine write the missing shards, and the shards whose failed pictures are retried.

    Raises:
        GradCamKitError: the model or a method accepts none of the first pictures, or the disk or a device failed.
    """
    prepared, overwrite = todo.prepared, todo.prepared.request.overwrite
    plan, explainer = prepared.plan, prepared.explainer
    work = _Work(todo, replace(todo.tally), begun=not overwrite)
    if not todo.numbers:
        return work
    # The request of a resumed run has been verified before.
    first = [] if prepared.goes_on else list(islice(plan.entries(), TRIED))
    check = partial(verify, explainer, first)
    try:
        with ExitStack() as stack:
            bar = stack.enter_context(ProgressBar(prepared.console, todo.pictures))
            stack.enter_context(interruptions_told(explainer.say))
            pipeline = Pipeline(prepared.request, explainer, prepared.store, plan.pictures, check, work.begin, bar.add)
            finished = closing(write_shards(pipeline, plan, todo.shards(), len(todo.numbers)))
            for done in stack.enter_context(finished):
                work.add(done)
    except FirstFailureError as failure:
        tried = [number for number in prepared.mine if number not in todo.again or number in work.written]
        work.tally = _found(prepared.store, tried)
        work.tally.add(failure.counts)
    except KeyboardInterrupt:
        work.interrupted = True
        work.tally = _found(prepared.store, prepared.mine) if work.begun else _Tally()
    except GradCamKitError as error:
        if not (overwrite and work.begun):
            raise
        raise type(error)(f"{error}; leave out --overwrite to continue from here") from error
    return work


def _sum_up(todo: _Todo, work: _Work, start: float) -> RunSummary:
    """Summarize the run."""
    prepared, tally = todo.prepared, work.tally
    complete = {*todo.known, *work.written}
    of_others = len(prepared.store.complete(but=complete)) if work.begun else 0
    command = "without --overwrite" if prepared.request.overwrite else "again"
    return RunSummary(
        prepared.request.out,
        tally.pictures,
        tally.failed,
        tuple(tally.problems),
        time.monotonic() - start,
        before=todo.tally.pictures,
        missing=prepared.plan.shards - len(complete) - of_others,
        left=prepared.pictures(prepared.mine) - tally.pictures,
        interrupted=work.interrupted,
        go_on=command if work.begun else "",
    )


def _found(store: Store, numbers: Container[int]) -> _Tally:
    """Count the pictures of existing shards with these numbers, including shards written just before the stop."""
    tally = _Tally()
    for number, counts in sorted(store.complete().items()):
        if number in numbers:
            tally.add_shard(store, number, counts)
    return tally
