"""What holds on the CPU holds on a GPU, and calls wait for it where `test_waits.py` says, at their end alone."""

from __future__ import annotations

import copy

import pytest
import torch
from comparisons import FEWER, home, is_for_transformers, layers_of
from metric_cases import CLASSES, measure, standard_case
from models import Apply, build, images, tiny
from representatives import ON_CLASSES, each
from torch import nn
from waits import metric_waits, waits_of

from gradcam_kit import METHODS, GradCAM, explain_all, overlay
from gradcam_kit.capture import rescoring
from gradcam_kit.methods.arithmetic.components import principal
from gradcam_kit.metrics import METRICS, MetricInput, impute

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _full_float32():
    """TensorFloat-32 keeps 10 bits of the mantissa; that is no deviation of ours."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", each())
def test_the_map_is_that_of_the_cpu(name):
    model, x = tiny(), images()
    try:
        expected = METHODS[name](model, "relu2")(x)
    except Exception as error:
        pytest.skip(f"not for this model: {error}")
    found = METHODS[name](copy.deepcopy(model).cuda(), "relu2")(x.cuda())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_the_imputation_is_exact_where_convolutions_may_round(count, monkeypatch):
    """As is the default of torch: TensorFloat-32 for convolutions of a single group."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x = images(count, size=(96, 96))
    removed = torch.zeros(count, 96, 96, dtype=torch.bool)
    removed[:, 10:80, 5:90] = True
    torch.testing.assert_close(impute(x.cuda(), removed.cuda()).cpu(), impute(x, removed), rtol=0, atol=2e-3)


@pytest.mark.parametrize("targets", [None, [0, 1, 2], [[0, 1], [2, 3], [4, 0]]], ids=["predicted", "n", "nm"])
@pytest.mark.parametrize(("name", "layer"), each((name, layer) for name in ON_CLASSES for layer in layers_of(name)))
def test_a_call_waits_at_its_end_alone(name, layer, targets, monkeypatch):
    model, x = home(name), images(3, size=(16, 16) if is_for_transformers(name) else (16, 14)).double()
    expected = METHODS[name](model, layer, **FEWER.get(name, {}))(x, targets)
    cam = METHODS[name](copy.deepcopy(model).cuda(), layer, **FEWER.get(name, {}))
    x = x.cuda()
    cam(x, targets)  # what it finds out about the model
    waits: list[torch.cuda.Event] = []
    synchronize = torch.cuda.Event.synchronize
    # The mode does not see this way of waiting, which is the one that is chosen.
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda event: waits.append(event) or synchronize(event))
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = cam(x, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == len(waits_of(name, layer))
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)


def test_what_rounding_leaves_of_float32_hides_no_head_and_no_suffix(monkeypatch):
    """As is the default of torch: TensorFloat-32 for convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    passes = []
    parts = nn.Conv2d(3, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 512, 3, padding=1), nn.ReLU()
    model = build(
        lambda m, x, shift=0: m.head(m.body(m.first(x + shift)).mean((2, 3), keepdim=True)).flatten(1),
        first=Apply(lambda x: passes.append(len(x)) or x),
        body=nn.Sequential(*parts),
        head=nn.Conv2d(512, 10, 1),
    )
    x = images(3, size=(32, 32))
    expected = METHODS["einsum-cam"](model, "body.3")(x)
    there, x = copy.deepcopy(model).cuda(), x.cuda()
    torch.testing.assert_close(METHODS["einsum-cam"](there, "body.3")(x).cpu(), expected, rtol=0, atol=2e-2)
    passes.clear()
    METHODS["ablation-cam"](there, "body.1", batch_size=64)(x)
    assert passes == [3]  # the part behind the layer runs alone
    with rescoring(there, (x, x / 10), 0) as rescore:  # two inputs, which belong to the samples
        assert rescore(x, torch.arange(3, device="cuda")).isfinite().all()


@pytest.mark.parametrize("share", [0.5, 1e-4, 1e-8])
def test_squaring_on_the_device_finds_the_component(share):
    values = torch.linspace(0.1, 0.5, 49, dtype=torch.float64)
    values[0], values[1] = 1, 1 - share
    draw = torch.randn(49, 49, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors = torch.linalg.qr(draw).Q
    _, (found,) = principal(((vectors * values) @ vectors.mT)[None].cuda())
    assert float((found.cpu() @ vectors[:, 0]).abs()) > 1 - (1e-13 / share) ** 2 - 1e-14


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


@pytest.mark.parametrize("way", ["model", "autocast"])
def test_pictures_are_channels_last_in_half_precision(way):
    model, x, orders = tiny().cuda(), images(2, size=(96, 96)).cuda(), []
    model.register_forward_pre_hook(lambda module, args: orders.append(not args[0].is_contiguous()))
    GradCAM(model, "relu2")(x)
    if way == "model":
        GradCAM(model.bfloat16(), "relu2")(x.bfloat16())
    else:
        with torch.autocast("cuda", torch.bfloat16):
            GradCAM(model, "relu2")(x)
    assert orders == [False, True]


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


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_those_of_the_cpu_and_wait_where_they_have_to(name):
    with standard_case(named=False) as case:
        expected = measure(METRICS[name], case)
    classes, x = CLASSES.tolist(), case.images.cuda()
    model = tiny().cuda()
    cam = GradCAM(model, "relu1")
    with rescoring(model, x, classes) as rescore:
        for mode in ("default", "default" if metric_waits(name) else "error"):
            own = MetricInput(
                case.heatmaps.cuda(),
                x,
                rescore,
                masks=case.masks.cuda(),
                explain=lambda rows: cam(rows, classes),
                seed=case.seed,
            )
            try:
                torch.cuda.set_sync_debug_mode(mode)
                found = measure(METRICS[name], own)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert found.values.device.type == "cuda"
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=2e-3, atol=1e-4)
    assert torch.equal(found.status.cpu(), expected.status)
