"""Run on a Ray cluster: tasks read pictures, actors hold the model, tasks render, and the driver writes shards.

Stages, batches, rows and shards are the same as in the local pipeline. The pictures come from the plan; Ray does not
list files.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gradcam_kit.errors import CaptureError, GradCamKitError, missing_extra
from gradcam_kit.functional import Normalization
from gradcam_kit.jobs.engines.devices import with_layers
from gradcam_kit.jobs.engines.local import Done, FirstFailureError, Progress, has_thumbnail, normalizations
from gradcam_kit.jobs.request import RunRequest
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.plan import Plan, Shard
from gradcam_kit.jobs.sources.reading import silence_decoders
from gradcam_kit.jobs.storage.addresses import is_remote
from gradcam_kit.jobs.storage.counts import Counts, counted
from gradcam_kit.jobs.storage.rows import Row
from gradcam_kit.jobs.storage.store import Store
from gradcam_kit.jobs.work.batches import Batch
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.measuring import metric_fields
from gradcam_kit.jobs.work.methods import layers_of
from gradcam_kit.jobs.work.overlays import mark_unrendered, render_overlays
from gradcam_kit.jobs.work.reader import Decoded, Failed, Reader, batches, decode
from gradcam_kit.transforms import Transform

try:
    import ray
    import ray.data
except ImportError as error:
    raise missing_extra("--engine ray needs Ray", "ray") from error

_WAVE = 256  # number of shards submitted to Ray at once, which bounds the memory of the driver
_CPUS_PER_ACTOR = 4  # on clusters without GPUs, there is at most one actor for this number of cores
_TRIES = 3  # maximum number of tries to render a batch, if each try kills its worker
_SILENT = logging.CRITICAL + 1

Table = dict[str, np.ndarray]
"""A batch of Ray Data; in this module, a batch always has one row."""


@dataclass(frozen=True)
class _Item:
    """One batch of a shard on its way through the cluster.

    Attributes:
        batch: the number of this batch among the `batches` of the shard.
        entries: the pictures, and whether each gets a thumbnail and overlays.
        notes: messages for the user.
    """

    shard: int
    batch: int
    batches: int
    entries: Sequence[tuple[Entry, bool, bool]]
    decoded: list[Decoded | Failed] = field(default_factory=list)
    rows: list[list[Row]] = field(default_factory=list)
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def work_on_ray(
    request: RunRequest,
    explainer: Explainer,
    plan: Plan,
    shards: Iterable[Shard],
    begin: Callable[[], None],
    progress: Progress,
) -> Generator[Done, None, None]:
    """Write shards on the connected Ray cluster, otherwise on the one at `RAY_ADDRESS` or on a new local one.

    Raises:
        GradCamKitError: the cluster could not complete all shards.
        FirstFailureError: a picture failed, and the run stops at the first failure.
    """
    absolute = request.out if is_remote(request.out) else os.path.abspath(request.out)
    checkpoint = None if request.checkpoint is None else Path(request.checkpoint).absolute()
    names = explainer.loaded.class_names
    device = "cpu" if explainer.device.type == "cpu" and request.device is not None else None
    request = replace(request, out=absolute, checkpoint=checkpoint, class_names=names, device=device, overwrite=False)
    store = Store.at(absolute, metric_fields(request.metrics))
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if not ray.is_initialized():
            paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
            # Workers import the user's modules, such as the module of the model.
            environment = {"env_vars": {"PYTHONPATH": paths}}
            address = os.environ.get("RAY_ADDRESS", "local")
            with _backend_quiet():
                ray.init(address, logging_level="ERROR", log_to_driver=False, runtime_env=environment)
            stack.callback(ray.shutdown)
        begin()
        said: set[str] = set()
        for wave in batches(shards, _WAVE):
            open_shards = {shard.number: (shard, dict[int, _Item]()) for shard in wave}
            items = [item for shard in wave for item in _items(request, shard, plan.pictures)]
            for item in _explained(request, explainer, store, items):
                for text in item.notes:
                    if text not in said:
                        explainer.say(text)
                        said.add(text)
                shard, parts = open_shards[item.shard]
                if item.batch in parts:
                    continue  # Ray repeats the work of nodes that died
                parts[item.batch] = item
                failed = [rows for rows in item.rows if rows[0]["status"] != "ok"]
                if request.fail_fast and failed:
                    raise FirstFailureError(counted(failed[0]))
                progress(len(item.rows), len(failed))
                if len(parts) == item.batches:
                    del open_shards[item.shard]
                    yield Done(shard.number, _write(store, shard, parts))
            if open_shards:
                missing = f"{len(open_shards)} of {len(wave)} shards"
                raise CaptureError(f"Ray ended before it completed {missing}; run the same command to resume")


def _explained(request: RunRequest, explainer: Explainer, store: Store, items: Sequence[_Item]) -> Iterator[_Item]:
    gpus = 0 if request.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    rows = ray.data.from_items([_row(item) for item in items], override_num_blocks=len(items))
    # Reading mostly waits for storage, so a task needs less than a core. As its resources differ from those of the
    # actors, Ray does not fuse it with them.
    packed = ray.cloudpickle.dumps(explainer.loaded.transform)
    rows = rows.map_batches(_decode, fn_args=(packed,), num_cpus=0.5, **_SINGLE)
    rows = rows.map_batches(
        _Explain,
        fn_constructor_args=(request, layers_of(explainer)),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpus or max(1, cpus // _CPUS_PER_ACTOR)),
        **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
        **_SINGLE,
    )
    if request.overlays != 0:
        arguments = (store.folder.root, normalizations(explainer))
        rows = rows.map_batches(_render, fn_args=arguments, **_SINGLE)
    try:
        for table in rows.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=1):
            yield _item(table)
    except ray.exceptions.RayError as error:
        raise _failure(error) from error


def _failure(error: Exception) -> GradCamKitError:
    """Return the error of a worker if it is a GradCamKitError, otherwise a CaptureError with Ray's message."""
    cause = getattr(error, "cause", None) or error.__cause__
    if isinstance(cause, GradCamKitError):
        return cause
    said = str(error).strip().splitlines()[-1]
    return CaptureError(f"Ray failed: {said}; complete results remain valid, so run the same command to resume")


_SINGLE: dict[str, Any] = {"batch_size": 1, "batch_format": "numpy", "zero_copy_batch": False}


def _decode(table: Table, packed: bytes) -> Table:
    item = _item(table)
    marked = [(entry, small) for entry, small, _ in item.entries]
    if _deaths():  # a picture may have killed the worker, and would kill every worker that reads it
        [decoded] = _guarded_reader(packed).read([marked], 1)
    else:
        silence_decoders()
        transform: Transform = pickle.loads(packed)
        decoded = [decode(entry, transform, small) for entry, small in marked]
    return _table(replace(item, decoded=decoded))


@lru_cache(1)
def _guarded_reader(packed: bytes) -> Reader:
    """Return a reader that decodes in a separate process, shared by all tasks of this process."""
    return Reader(pickle.loads(packed), 1, processes=True)


class _Explain:
    """The model on its device, in a separate process."""

    def __init__(self, request: RunRequest, layers: Mapping[str, list[str]]) -> None:
        self.notes: list[str] = []
        self.explainer = replace(with_layers(request, layers), say=self.notes.append)

    def __call__(self, table: Table) -> Table:
        item = _item(table)
        with self.explainer.ready():
            found = list(self.explainer.explain(Batch(item.decoded)))
        small = {one.entry.key: one.thumbnail for one in found if one.thumbnail is not None}
        return _table(
            replace(item, decoded=[], rows=[one.rows for one in found], thumbnails=small, notes=tuple(self.notes))
        )


def _render(table: Table, root: str, normalization: Mapping[str, Normalization]) -> Table:
    item, store = _item(table), Store.at(root)
    for (entry, _, wanted), rows in zip(item.entries, item.rows, strict=True):
        if not (wanted and rows[0]["status"] == "ok"):
            continue
        if _deaths() < _TRIES:
            render_overlays(store, entry, rows, normalization)
        else:
            mark_unrendered(rows, CaptureError("the processes that rendered it died"))
    return _table(item)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's messages off the terminal for the duration of the block; its log files still get them."""
    context = ray.data.DataContext.get_current()
    with ExitStack() as settings:
        settings.callback(setattr, context, "enable_progress_bars", context.enable_progress_bars)
        context.enable_progress_bars = False
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                settings.callback(handler.setLevel, handler.level)
                handler.setLevel(_SILENT)
        yield


@contextmanager
def _backend_quiet() -> Iterator[None]:
    """Silence Ray's native code, which reads its log level from the environment at startup and prints that it did."""
    name = "RAY_BACKEND_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    errors = os.dup(2)
    os.environ[name] = "fatal"
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        del os.environ[name]


def _deaths() -> int:
    """Return how many workers died while they ran this task; 0 if this version of Ray does not report it."""
    worker = ray._private.worker.global_worker.core_worker
    return int(getattr(worker, "get_current_task_attempt_number", int)())


def _items(request: RunRequest, shard: Shard, pictures: int) -> Iterator[_Item]:
    marked = [
        (
            entry,
            has_thumbnail(position, pictures, request.thumbnails),
            request.overlays is None or position < request.overlays,
        )
        for entry, position in zip(shard.entries, shard.positions, strict=True)
    ]
    parts = list(batches(marked, request.batch_size))
    for number, entries in enumerate(parts):
        yield _Item(shard.number, number, len(parts), entries)


def _write(store: Store, shard: Shard, parts: Mapping[int, _Item]) -> Counts:
    items = [parts[number] for number in sorted(parts)]
    rows = shard.with_kept([row for item in items for rows in item.rows for row in rows])
    thumbnails = store.read_thumbnails(shard.number) if shard.kept else {}
    for item in items:
        thumbnails.update(item.thumbnails)
    return store.write_shard(shard.number, rows, thumbnails)


def _row(item: _Item) -> dict[str, Any]:
    return {"item": pickle.dumps(item)}


def _table(item: _Item) -> Table:
    packed = np.empty(1, object)
    packed[0] = pickle.dumps(item)
    return {"item": packed}


def _item(table: Table) -> _Item:
    item: _Item = pickle.loads(bytes(table["item"][0]))  # safe, because a process of the same run has pickled it
    return item
