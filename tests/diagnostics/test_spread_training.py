"""Trainings in two processes: DistributedDataParallel, and parameters that `fully_shard` spreads over both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import forked
import pytest
from torch import distributed

if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("no process groups", allow_module_level=True)

START = """
import json, pickle, sys, warnings
import torch
import torch.distributed as dist
from torch import nn
warnings.simplefilter("ignore")
rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
from gradcam_kit.diagnostics import ModelDiagnostics, clip_gradients, find_nonfinite, monitor_gradients

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 7), nn.ReLU(), nn.Linear(7, 1))

x = torch.randn(8, 16, generator=torch.Generator().manual_seed(rank))

def step(model, optimizer):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()

def trained(make, watched, lr=0.1):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    diagnostics = ModelDiagnostics(model, optimizer=optimizer)
    if watched:
        diagnostics.start()
    for _ in range(12):
        step(model, optimizer)
    diagnostics.stop()
    return model, diagnostics

def gathered(diagnostics):
    states = [None, None]
    dist.all_gather_object(states, pickle.dumps(diagnostics.state_dict()))
    return diagnostics.merge(pickle.loads(states[1 - rank]))

def rows(diagnostics):
    return {own.name: [own.norm, own.gradient_norm, own.local] for own in diagnostics.report().parameters}
"""

DDP = (
    START
    + """
wrap = lambda: nn.parallel.DistributedDataParallel(make())
plain, _ = trained(wrap, False)
model, diagnostics = trained(wrap, True)
both = gathered(diagnostics)
same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters()))
own, merged = diagnostics.report(), both.report()
print(json.dumps({
    "same": same, "own": own.layers[0].n, "merged": merged.layers[0].n, "names": [one.name for one in own.layers],
    "means": [own.layers[0].mean, merged.layers[0].mean], "rows": rows(both), "notes": merged.notes,
    "findings": [str(one) for one in merged.findings],
}))
dist.destroy_process_group()
"""
)

FSDP = (
    START
    + """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
mesh = init_device_mesh("cpu", (2,))

def spread():
    model = make()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)

plain, _ = trained(spread, False)
model, diagnostics = trained(spread, True)
both = gathered(diagnostics)
same = all(torch.equal(a.to_local(), b.to_local()) for a, b in zip(plain.parameters(), model.parameters()))
whole = {name: float(own.full_tensor().norm()) for name, own in plain.named_parameters()}
slow = trained(spread, True, lr=1e-12)[1].report()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with find_nonfinite(model) as healthy, monitor_gradients(model) as gradients:
    step(model, optimizer)
with clip_gradients(model, max_norm=1e-3):
    model.zero_grad()
    model(x).square().mean().backward()
clipped = float(sum(own.grad.full_tensor().square().sum() for own in model.parameters()).sqrt())
with torch.no_grad():
    model[2].weight.to_local()[0, 0] = torch.nan if rank == 0 else 0.0
with find_nonfinite(model, raise_error=False) as origin:
    model(x)
print(json.dumps({
    "same": same, "rows": rows(diagnostics), "merged": rows(both), "whole": whole, "notes": diagnostics.report().notes,
    "findings": [str(one) for one in diagnostics.report().findings],
    "slow": [one.message for one in slow.findings], "slow_kinds": [one.kind for one in slow.findings],
    "healthy": bool(healthy), "total": gradients.total_norm, "local": gradients["2.weight"].local, "clipped": clipped,
    "origin": [origin.forward.layer, origin.forward.kind, origin.forward.cause], "said": origin.notes,
}))
dist.destroy_process_group()
"""
)


FSDP1 = (
    START
    + """
from torch.distributed.fsdp import FullyShardedDataParallel
reports = {}
for flat in (True, False):
    wrap = lambda: FullyShardedDataParallel(make(), device_id=torch.device("cpu"), use_orig_params=not flat)
    plain, _ = trained(wrap, False)
    model, diagnostics = trained(wrap, True)
    both = gathered(diagnostics)
    same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters()))
    with FullyShardedDataParallel.summon_full_params(plain):
        whole = float(sum(own.square().sum() for own in plain.parameters()).sqrt())
    reports[str(flat)] = {"same": same, "whole": whole, "rows": rows(diagnostics), "merged": rows(both)}
print(json.dumps(reports))
dist.destroy_process_group()
"""
)


def in_two_processes(program: str, folder: Path) -> list[dict[str, Any]]:
    return [json.loads(output.splitlines()[-1]) for output in forked.run_two_ranks(program, folder)]


@pytest.mark.long
def test_data_parallel_ranks_observe_themselves_and_are_merged(tmp_path: Path) -> None:
    ranks = in_two_processes(DDP, tmp_path)
    for found in ranks:
        assert found["same"]
        assert found["names"] == ["0", "1", "2", "3", "4"]
        assert (found["own"], found["merged"]) == (96, 192)
        assert not any(local for *_, local in found["rows"].values())
        assert not found["notes"]
        assert not [said for said in found["findings"] if said.startswith("BAD")]
    assert ranks[0]["means"][1] == pytest.approx(sum(rank["means"][0] for rank in ranks) / 2, rel=1e-9)
    assert ranks[0]["rows"] == ranks[1]["rows"]


@pytest.mark.long
def test_local_shards_are_said_to_be_local_until_the_ranks_are_merged(tmp_path: Path) -> None:
    ranks = in_two_processes(FSDP, tmp_path)
    for found in ranks:
        assert found["same"]
        assert not found["healthy"]
        assert not [said for said in found["findings"] if said.startswith("BAD")]
        assert sum("local until the ranks are joined by merge()" in note for note in found["notes"]) == 1
        assert found["local"]
        assert found["clipped"] == pytest.approx(1e-3, rel=1e-3)
        assert "update" in found["slow_kinds"]
        assert all("(local shards of one rank)" in said for said in found["slow"])
        assert found["origin"][:2] == ["2", "nan"]
        assert any("spread over processes" in note for note in found["said"])
    names = set(ranks[0]["whole"])
    assert all(ranks[0]["rows"][name][2] for name in names)
    assert ranks[1]["rows"]["4.bias"][0] == 0  # its only value is that of the other rank
    for name in names:
        for place in (0, 1):
            parts = [rank["rows"][name][place] for rank in ranks]
            assert ranks[0]["merged"][name][place] == pytest.approx(math.hypot(*parts))
        assert not ranks[0]["merged"][name][2]
        assert ranks[0]["merged"][name][0] == pytest.approx(ranks[0]["whole"][name], rel=0.2)  # a few steps later
    assert [rank["origin"][2] for rank in ranks] == ["parameter weight", "computed here"]


@pytest.mark.exhaustive
def test_the_first_kind_of_fully_sharded_models(tmp_path: Path) -> None:
    for flat, found in in_two_processes(FSDP1, tmp_path)[0].items():
        assert found["same"], flat
        assert all(local for *_, local in found["rows"].values())
        assert not any(local for *_, local in found["merged"].values())
        # Norms are of the last measured step, the eleventh of twelve.
        assert math.hypot(*(norm for norm, *_ in found["merged"].values())) == pytest.approx(found["whole"], rel=0.05)
