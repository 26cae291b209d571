"""Parameters that are spread over devices (DTensor): biases and heads count as a whole."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gradcam_kit import CAM, FullGrad, GradCAM

distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("no process groups", allow_module_level=True)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


@pytest.fixture
def mesh() -> Iterator[object]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def make() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    model = nn.Sequential(*body).eval()
    nn.init.normal_(model[1].bias)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [FullGrad, CAM, GradCAM])
@pytest.mark.parametrize("way", ["fully sharded", "head spread by columns"])
def test_maps_of_spread_models_are_those_of_whole_ones(way: str, method: type, mesh: object) -> None:
    model = make()
    if way == "fully sharded":
        distributed.fsdp.fully_shard(model, mesh=mesh)
    else:
        parallel = distributed.tensor.parallel
        parallel.parallelize_module(model, mesh, {"5": parallel.ColwiseParallel()})
    assert type(model[5].bias) is distributed.tensor.DTensor
    expected = method(make(), "2")(IMAGES, 1)
    torch.testing.assert_close(method(model, "2")(IMAGES, 1), expected, atol=1e-5, rtol=1e-5)
