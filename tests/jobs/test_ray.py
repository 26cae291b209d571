"""The same rows from a Ray cluster, also when a part of it dies."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import disk
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gradcam_kit.errors import InputError
from gradcam_kit.jobs import RunRequest, RunSummary, run
from gradcam_kit.jobs.work import reader as decode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="no Ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # Ray leaves files open
]
ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 2, "object_store_memory": 200_000_000, "include_log_monitor": False}
SETTINGS = {
    "RAY_raylet_start_wait_time_s": "300",  # machines that are busy start slowly; read at import
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # without the environment of a run, so that it would start others
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        disk.move_in(folder, patch)
        disk.write_pictures(Path("pictures"))
        disk.break_pictures(Path("pictures"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(folder)]))
        yield folder


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[object]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, os.environ.get(name, value))
        from ray.cluster_utils import Cluster  # which takes seconds

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


def explain(out: str, engine: str, console: Console | None = None, **options: object) -> RunSummary:
    defaults = {"model": "shop:worn", "shard_size": 5, "batch_size": 5, "workers": 1, "methods": ("grad-cam",)}
    return run(RunRequest(**{**defaults, "source": "pictures", "out": out, "engine": engine, **options}), console)


def files(out: str) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(Path(out).rglob("*")) if path.is_file()}


def keep_one_shard(run: str, out: str, number: int) -> None:
    """Copy what a run leaves that was stopped when one shard was complete."""
    paths = [f"shards/{number:05}.parquet", f"thumbnails/{number:05}.parquet"]
    rows = pq.read_table(f"{run}/{paths[0]}", columns=["path"]).to_pylist()
    paths += ["run.json", *(f"overlays/{row['path']}.grad-cam.jpg" for row in rows)]
    for path in paths:
        Path(out, path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(run, path), Path(out, path))


def check_quiet_and_like_local(said: StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    """Only the smaller batches are reported, and every file of the run `out` is that of the run `local`."""
    assert said.getvalue().count("cpu ran out of memory; continuing with batches of 2") == 1
    assert capfd.readouterr().err == ""  # of Ray, neither what it does nor what it thinks of it
    assert "RAY_BACKEND_LOG_LEVEL" not in os.environ
    ours, theirs = files("out"), files("local")
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_every_file_is_that_of_the_local_engine_although_the_memory_is_full(
    folder: Path, cluster: object, capfd: pytest.CaptureFixture[str]
) -> None:
    """A resumed run with batches that fill the memory. What processes cost is the time of this test."""
    for i in range(24):
        disk.write_picture(Path(f"pictures/more/{i:02}.png"), np.roll(disk.CAT, i, axis=1))
    explain("local", "local")
    keep_one_shard("local", "out", 3)
    said = StringIO()
    capfd.readouterr()
    summary = explain("out", "ray", Console(file=said, width=200))
    assert (summary.pictures, summary.before, summary.failed, summary.missing) == (35, 5, 4, 0)
    check_quiet_and_like_local(said, capfd)


@pytest.mark.exhaustive
def test_every_file_is_that_of_the_local_engine_although_readers_memory_and_a_node_fail(
    folder: Path, cluster: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A resumed run with a picture that kills its reader, batches that fill the memory, and a node that is killed."""
    for i in range(24):
        disk.write_picture(Path(f"pictures/more/{i:02}.png"), np.roll(disk.CAT, i, axis=1))
    disk.write_picture(Path("pictures/zero.png"), disk.BLACK)  # the last one, as each death costs processes
    for name in ("local", "out"):
        shutil.rmtree(name, ignore_errors=True)
    monkeypatch.setattr(decode, "_FEW", 0)
    explain("local", "local", processes=True)
    assert len(list(Path("local/overlays").rglob("*.jpg"))) == 31
    keep_one_shard("local", "out", 3)
    node = cluster.add_node(**{**NODE, "num_cpus": 1})  # type: ignore[attr-defined]
    killed = threading.Event()

    def kill() -> None:
        end = time.monotonic() + 300
        while len(list(Path("out").glob("shards/*.parquet"))) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
        killed.set()

    said = StringIO()
    capfd.readouterr()
    thread = threading.Thread(target=kill)
    thread.start()
    summary = explain("out", "ray", Console(file=said, width=200), processes=True)
    thread.join()
    assert killed.is_set()
    assert (summary.pictures, summary.before, summary.failed, summary.missing) == (36, 5, 5, 0)
    assert "zero.png: cannot read the picture: the process that read it died" in "".join(summary.problems)
    check_quiet_and_like_local(said, capfd)


@pytest.mark.exhaustive
def test_a_model_that_cannot_take_the_pictures_is_named_and_leaves_no_folder(folder: Path, cluster: object) -> None:
    with pytest.raises(InputError, match="does not accept these pictures"):
        explain("wrong", "ray", model="shop:never", layers=("stage2",))
    assert not Path("wrong").exists()


def test_our_errors_come_back_from_workers_and_others_say_how_to_go_on() -> None:
    from ray.exceptions import RayTaskError

    from gradcam_kit.jobs.engines.ray_engine import _failure

    ours = InputError("the model does not accept these pictures")
    assert _failure(RayTaskError("map", "Traceback", ours).as_instanceof_cause()) is ours
    other = _failure(RayTaskError("map", "Traceback\nZeroDivisionError: zero", ZeroDivisionError("zero")))
    assert str(other).startswith("Ray failed: ZeroDivisionError: zero; complete results remain valid")
