"""What holds on the CPU holds on a GPU, and no call waits for the device more than once."""

from __future__ import annotations

import copy

import pytest
import torch
from models import build, images, tiny
from torch import nn

from gradcam_kit import METHODS, GradCAM, explain_all, overlay

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# CUDA's eigenvalue solver reports to the host whether it converged.
SYNCHRONIZING = ("eigen-cam", "eigen-grad-cam", "kpca-cam", "seg-eigen-cam")
WITHOUT = (
    *("ablation-cam", "cam", "einsum-cam", "fem", "grad-cam", "grad-cam++", "hires-cam", "lafam", "layer-cam"),
    *("recipro-cam", "score-cam", "xgrad-cam"),
)


@pytest.mark.parametrize("name", METHODS)
def test_the_map_is_that_of_the_cpu(name):
    model, x = tiny(), images()
    try:
        expected = METHODS[name](model, "relu2")(x)
    except Exception as error:
        pytest.skip(f"not for this model: {error}")
    found = METHODS[name](copy.deepcopy(model).cuda(), "relu2")(x.cuda())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", WITHOUT)
def test_no_host_synchronization_inside_a_call(name):
    assert name not in SYNCHRONIZING
    model, x = tiny().cuda(), images().cuda()
    cam = METHODS[name](model, "relu2")
    cam(x, targets=1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        cam(x, targets=1)
        cam(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_random_states_of_the_device_are_restored():
    model, x = tiny().cuda(), images().cuda()
    before = torch.cuda.get_rng_state()
    model.fc.register_forward_pre_hook(lambda module, args: (args[0] + 0 * torch.rand_like(args[0]),))
    GradCAM(model, "relu2")(x)
    assert torch.equal(before, torch.cuda.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(dtype):
    model, x = tiny(), images()
    expected = GradCAM(model, "relu2")(x)
    found = GradCAM(copy.deepcopy(model).cuda().to(dtype), "relu2")(x.cuda().to(dtype))
    assert found.dtype == torch.float32
    assert (found.cpu() - expected).abs().mean() < 0.05


def test_sharing_and_overlays():
    model, x = tiny().cuda(), images().cuda()
    cams = [METHODS[name](model, "relu2") for name in ("grad-cam", "grad-cam++", "layer-cam")]
    for shared, cam in zip(explain_all(cams, x), cams, strict=True):
        torch.testing.assert_close(shared, cam(x))
    assert overlay(x[0].sigmoid(), cams[0](x)[0]).shape == (16, 16, 3)


@pytest.mark.parametrize("layer", ["conv", "recurrent"])
def test_recurrent_layers_have_gradients_in_eval_mode(layer):
    model = build(
        lambda m, x: m.fc(m.recurrent(m.conv(x).relu().transpose(1, 2))[0].mean(1)),
        conv=nn.Conv1d(3, 6, 3, padding=1),
        recurrent=nn.LSTM(6, 8, batch_first=True),
        fc=nn.Linear(8, 5),
    )
    x = images(2, 3, (20,))
    expected = GradCAM(model, layer).explain(x).saliency[layer]
    found = GradCAM(copy.deepcopy(model).cuda(), layer).explain(x.cuda()).saliency[layer]
    assert torch.backends.cudnn.enabled
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-5)
