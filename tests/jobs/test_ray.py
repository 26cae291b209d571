"""The same rows from a Ray cluster, also when a part of it dies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import disk
import numpy as np
import pytest
import torch
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


@pytest.fixture(scope="module")
def connected(cluster: object) -> Iterator[None]:
    """The connection of a driver that has one already: its runs share processes, each of which starts in seconds."""
    import ray

    ray.init(os.environ["RAY_ADDRESS"], logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def explain(out: str, engine: str, console: Console | None = None, **options: object) -> RunSummary:
    defaults = {"model": "shop:net", "shard_size": 3, "batch_size": 2, "workers": 1, "methods": ("grad-cam",)}
    return run(RunRequest(**{**defaults, "source": "pictures", "out": out, "engine": engine, **options}), console)


def files(out: str) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(Path(out).rglob("*")) if path.is_file()}


def same(one: str, other: str) -> None:
    """Every file: rows with heatmaps, overlays, thumbnails and what the run says of itself."""
    ours, theirs = files(one), files(other)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_what_kills_a_reader_or_fills_the_memory_costs_no_more_than_on_one_machine(
    folder: Path, cluster: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(5):
        disk.write_picture(Path(f"frail/{i}.png"), np.roll(disk.CAT, i, axis=1) if i < 4 else disk.BLACK)
    monkeypatch.setattr(decode, "_FEW", 0)
    options = {"source": "frail", "model": "shop:frail", "shard_size": 5, "batch_size": 5, "processes": True}
    explain("dying-local", "local", **options)
    said = StringIO()
    capfd.readouterr()
    summary = explain("dying", "ray", Console(file=said, width=200), **options)
    assert (summary.pictures, summary.failed, summary.missing) == (5, 1, 0)
    assert summary.problems == ("4.png: cannot read the picture: the process that read it died",)
    assert said.getvalue().count("cpu ran out of memory; continuing with batches of 2") == 1
    assert capfd.readouterr().err == ""  # of Ray, neither what it does nor what it thinks of it
    assert "RAY_BACKEND_LOG_LEVEL" not in os.environ
    same("dying", "dying-local")


def test_rows_overlays_and_resume_are_those_of_the_local_engine(folder: Path, connected: None) -> None:
    torch.set_num_threads(1)  # as Ray gives its workers
    explain("local", "local")
    summary = explain("out", "ray")
    assert (summary.pictures, summary.failed, summary.missing) == (11, 4, 0)
    same("out", "local")
    Path("out/shards/00001.parquet").unlink()
    summary = explain("out", "ray")
    assert (summary.pictures, summary.before) == (11, 8)
    same("out", "local")
    with pytest.raises(InputError, match="cannot take these pictures"):
        explain("wrong", "ray", model="shop:never", layers=("stage2",))
    assert not Path("wrong").exists()


def test_a_node_that_is_killed_changes_nothing(folder: Path, cluster: object, connected: None) -> None:
    for i in range(40):
        disk.write_picture(Path(f"pictures/more/{i:02}.png"), np.roll(disk.CAT, i, axis=1))
    explain("undisturbed", "local", model="shop:slow")
    node = cluster.add_node(**NODE)  # type: ignore[attr-defined]
    killed = threading.Event()

    def kill() -> None:
        end = time.monotonic() + 60
        while len(list(Path("disturbed").glob("shards/*.parquet"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    summary = explain("disturbed", "ray", model="shop:slow")
    thread.join()
    assert killed.is_set()
    assert (summary.pictures, summary.failed, summary.missing) == (51, 4, 0)
    same("disturbed", "undisturbed")
