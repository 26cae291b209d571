"""Parameters that are spread over devices (DTensor): biases and heads count as a whole."""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn

from gradcam_kit import CAM, FullGrad, GradCAM

if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("no process groups", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


@pytest.fixture
def mesh() -> Iterator[object]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
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
        fully_shard(model, mesh=mesh)
    else:
        parallelize_module(model, mesh, {"5": ColwiseParallel()})
    assert type(model[5].bias) is DTensor
    expected = method(make(), "2")(IMAGES, 1)
    torch.testing.assert_close(method(model, "2")(IMAGES, 1), expected, atol=1e-5, rtol=1e-5)
