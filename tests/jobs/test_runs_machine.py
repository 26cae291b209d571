"""Whatever the machine is, the rows are the same: little memory, a full disk, several devices, a compiler."""

from __future__ import annotations

import errno
import inspect
import os
from pathlib import Path
from typing import Any

import disk
import numpy as np
import pytest
import torch
from runs import content, explain, notes

from gradcam_kit.capture.rerun import rescore as scoring
from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.storage.folders import LocalFolder


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)


def test_too_little_memory_halves_the_batch_and_says_so_once() -> None:
    disk.write_pictures(Path("pictures"))
    said = notes()
    assert explain(model="shop:small", shard_size=10, batch_size=7, console=said).failed == 0
    text = said.export_text()
    assert text.count("out of memory") == 1
    assert "continuing with batches of 3" in text
    explain(out="other", shard_size=10)
    for ours, theirs in zip(disk.read_rows(Path("out")), disk.read_rows(Path("other")), strict=True):
        assert np.abs(ours["heatmap"] - theirs["heatmap"]).max() < 2e-3


def test_on_a_cpu_no_pass_has_more_pictures_than_are_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    monkeypatch.setattr(scoring, "_NEAR", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    said = notes()
    assert explain(model="shop:small", batch_size=7, console=said).failed == 0  # it takes three
    assert "out of memory" not in said.export_text()


def test_a_full_disk_leaves_what_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    explain(out="whole", overlays=0)
    with monkeypatch.context() as patch:
        disk.fill_up(patch)
        with pytest.raises(OptionError, match=r"'out/shards/00002.parquet' cannot be written: No space left on device"):
            explain(overlays=0)
    assert {"00000.parquet", "00001.parquet"} <= set(os.listdir("out/shards")) <= set(os.listdir("whole/shards"))
    assert not Path("out/shards/00002.parquet").exists()
    assert explain(overlays=0).before >= 4
    assert content("out") == content("whole")


def test_a_disk_that_is_full_for_overlays_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))

    def full(self: LocalFolder, name: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalFolder, "put", full)
    with pytest.raises(OptionError, match=r"'out' cannot be written: No space left on device"):
        explain()
    assert not Path("out/shards").exists()


def test_several_devices_write_what_one_does() -> None:
    disk.write_pictures(Path("pictures"))
    disk.break_pictures(Path("pictures"))
    explain(out="one", workers=1)
    assert explain(device="cpu,cpu").failed == 4
    assert content("out") == content("one")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at each
def test_compiled_modules_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_pictures(Path("pictures"))
    compiled, graphs = [], []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def compile_eagerly(function: Any) -> Any:
        compiled.append(type(inspect.unwrap(function).__closure__[0].cell_contents).__name__)
        return compile_function(function, backend=backend)

    compile_function = torch.compile
    explain(out="plain")
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    explain(compile=True)
    assert compiled == ["Conv2d", "Linear"]  # not stage2, which is explained
    assert len(graphs) >= 2
    for ours, theirs in zip(disk.read_rows(Path("out")), disk.read_rows(Path("plain")), strict=True):
        assert np.abs(ours["heatmap"] - theirs["heatmap"]).max() < 2e-3
