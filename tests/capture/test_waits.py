"""No call waits for the device before all of its work is queued, and the ways that are taken there give the same maps.

The device is one on the host (`waits.py`), so this runs everywhere; `test_cuda.py` asks CUDA itself the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparisons import FEWER, home, is_for_transformers, layers_of
from models import build, images, tiny
from networks import blocks, vit
from representatives import ON_CLASSES, crossed, each, others
from torch import Tensor, nn
from torch.testing import assert_close
from wait_cases import CLASSES, TARGETS, pictures
from waits import END, ROWS, device, on_device, on_host, waits_of

from gradcam_kit import METHODS, EigenSmooth, GradCAM, LayerCAM, explain_all, functional
from gradcam_kit.capture.deferred_checks import Checks, retry_without_cache
from gradcam_kit.errors import CaptureError, ClassIndexError, NonFiniteError
from gradcam_kit.methods.arithmetic.channels import where_true
from gradcam_kit.targets import (
    ClassLogit,
    DetectionTarget,
    SegmentationTarget,
)

TWO_EACH = [[0, 1], [2, 3], [4, 0]]
# Any formula might wait, so every method is asked; layers and shapes of targets are matters of the pass.
CALLS = [
    *((name, layers_of(name)[0], TWO_EACH) for name in ON_CLASSES),
    *each((name, layers_of(name)[-1], None) for name in ON_CLASSES),
    *others((name, layers_of(name)[0], None) for name in ON_CLASSES if len(layers_of(name)) > 1),
    *others((name, layers_of(name)[-1], TWO_EACH) for name in ON_CLASSES if len(layers_of(name)) > 1),
]


SCORED = ("grad-cam", "score-cam")
"""Methods that ask a target for its gradient, and for the scores of changed images."""


def waits_of_second(explain: Callable[[nn.Module, Tensor], Any], model: nn.Module, x: Tensor) -> list[str]:
    """Where the second call waits on the device; both calls have to give what the host does."""
    expected = explain(model, x)
    there, there_x = on_device(model), on_device(x)
    with device() as found:
        first = explain(there, there_x)
        found.waits.clear()
        second = explain(there, there_x)
        waits = list(found.waits)
    for maps in (first, second):
        assert maps.device.type == "meta"
        assert_close(on_host(maps), expected, rtol=0, atol=1e-5)
    assert expected.any()
    return waits


@pytest.mark.parametrize(("name", "layer", "targets"), CALLS)
def test_a_call_waits_at_its_end_alone(name, layer, targets):
    def explain(model, x):
        return METHODS[name](model, layer, **FEWER.get(name, {}))(x, targets)

    assert waits_of_second(explain, home(name), pictures(name)) == waits_of(name, layer)


@pytest.mark.parametrize(
    ("name", "kind"), crossed([*SCORED, "ablation-cam", "recipro-cam", "integrated-grad-cam"], TARGETS, whole=SCORED)
)
def test_targets_do_not_wait(kind, name):
    def explain(model, x):
        return METHODS[name](model, "block1", **FEWER.get(name, {}))(x, TARGETS[kind]())

    assert waits_of_second(explain, blocks(), pictures()) == waits_of(name, "block1")


@pytest.mark.parametrize("name", ["grad-cam", "score-cam"])
def test_the_mask_of_a_segmentation_target_is_looked_at_once(name):
    mask = torch.rand((3, 16, 14), generator=torch.Generator().manual_seed(0))
    model = build(lambda m, x: m.b(m.a(x).relu()), a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 5, 1)).double()

    def explain(model, x):
        own = mask if x.device.type == "cpu" else on_device(mask)
        return METHODS[name](model, "a", batch_size=2)(x, SegmentationTarget(own, CLASSES))

    waits = waits_of_second(explain, model, pictures())
    assert [wait for wait in waits if wait not in waits_of(name, "a")] == ["values.read_numbers: _local_scalar_dense"]


@pytest.mark.parametrize("name", ["grad-cam", "score-cam"])
@pytest.mark.parametrize("shape", [(16, 14), (3, 16, 14), None])
def test_segmentation_targets_do_not_wait(shape, name):
    mask = None if shape is None else torch.rand(shape, generator=torch.Generator().manual_seed(0))
    model = build(lambda m, x: m.b(m.a(x).relu()), a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 5, 1)).double()

    def explain(model, x):
        return METHODS[name](model, "a")(x, SegmentationTarget(mask, CLASSES))

    assert waits_of_second(explain, model, pictures()) == waits_of(name, "a")


def test_boxes_that_nothing_overlaps_are_looked_for_before_the_rows():
    def detections(m, x):
        corner = 4 * torch.arange(2, dtype=x.dtype, device=x.device)
        boxes = torch.stack([corner, corner, corner + 8, corner + 8], 1)
        return [{"boxes": boxes, "scores": own} for own in m.fc(m.layer(x).relu().mean((2, 3))).sigmoid()]

    model = build(detections, layer=nn.Conv2d(3, 4, 3, padding=1), fc=nn.Linear(4, 2)).double()
    for name in ("grad-cam", "score-cam"):
        waits = waits_of_second(
            lambda model, x, name=name: METHODS[name](model, "layer")(x, DetectionTarget([4, 4, 12, 12])),
            model,
            pictures(),
        )
        assert waits == ["detection._match: _local_scalar_dense", *waits_of(name, "layer")]


def test_classes_on_the_device_are_read_before_the_pass():
    def explain(model, x):
        classes = torch.tensor(CLASSES)
        return GradCAM(model, "block1")(x, classes if x.device.type == "cpu" else on_device(classes))

    assert waits_of_second(explain, blocks(), pictures()) == ["classes.resolve_target: a copy to the host", END]


def test_several_layers_and_methods_wait_once():
    names = [name for name in ON_CLASSES if waits_of(name, "block2") == [END] and not is_for_transformers(name)]
    same = [name for name in names if METHODS[name].target_type is ClassLogit]

    def together(model, x):
        cams = [METHODS[name](model, layers_of(name)[-1], **FEWER.get(name, {})) for name in same]
        return torch.stack(
            explain_all([*cams, LayerCAM(model, ["block1", "block2"]), EigenSmooth(GradCAM(model, "block2"))], x)
        )

    assert len(same) > 15
    assert waits_of_second(together, blocks(), pictures()) == [END]


@pytest.mark.parametrize("model", [blocks, vit])
def test_the_automatic_layer_is_looked_for_once(model):
    cams: dict[int, GradCAM] = {}

    def explain(model, x):
        return cams.setdefault(id(model), GradCAM(model))(x)

    assert waits_of_second(explain, model(), images(3, size=(16, 16)).double()) == [END]


@pytest.mark.parametrize("name", ["cam", "einsum-cam", "ablation-cam", "recipro-cam"])
def test_a_head_that_is_none_any_more_is_noticed(name):
    model = build(
        lambda m, x: m.fc(m.layer(x).mean((2, 3))) * m.scale(x.mean((1, 2, 3))[:, None]).relu(),
        layer=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        fc=nn.Linear(4, 5),
        scale=nn.Linear(1, 1),
    ).double()
    with torch.no_grad():
        model.scale.weight.zero_()
        model.scale.bias.fill_(1)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.scale.weight.fill_(1)
    x = pictures()

    def explain(model, x):
        try:
            return METHODS[name](model, "layer")(x, CLASSES)
        except CaptureError as error:
            return str(error)

    before, after = explain(model, x), explain(changed, x)
    there, there_x = on_device(model), on_device(x)
    with device() as found:
        assert_close(on_host(explain(there, there_x)), before)
        for now, expected in ((changed, after), (model, before)):
            there.scale.weight.data.copy_(on_device(now.scale.weight.data))
            maps = explain(there, there_x)
            assert maps == expected if isinstance(expected, str) else torch.allclose(on_host(maps), expected)
            found.waits.clear()
            explain(there, there_x)  # which knows it
            assert found.waits == ([ROWS] if name == "ablation-cam" and now is changed else []) + [END]


def test_what_one_pass_of_a_call_shows_and_the_next_does_not_ends():
    model, there = blocks(), on_device(blocks())
    asked = []

    def work() -> bool:
        answers = []
        for truth in (True, False):
            checks = Checks(there)
            answers.append(checks.cached_bool("question", on_device(torch.tensor(truth))))
            checks.raise_first()
        asked.append(answers)
        return answers == [True, False]

    with device():
        assert retry_without_cache(work)()
        assert retry_without_cache(work)()
    assert not Checks(model).cached_bool("question", torch.tensor(False))


def test_errors_are_those_of_the_host():
    model, x = blocks(), pictures()
    broken = x.clone()
    broken[1, 0, 0, 0] = torch.nan
    equal = build(lambda m, x: m.fc(m.conv(x).amax((2, 3))), conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(4, 5)).double()
    cases = [
        (NonFiniteError, "grad-cam", "block1", model, broken, None),
        (NonFiniteError, "eigen-cam", "block1", model, broken, None),
        (NonFiniteError, "score-cam", "block1", model, broken, None),
        (ClassIndexError, "grad-cam", "block1", model, x, 5),
        (CaptureError, "cam", "block1", model, x, None),
        (CaptureError, "einsum-cam", "conv", equal, x, None),
    ]
    for kind, name, layer, module, batch, targets in cases:
        with pytest.raises(kind) as expected:
            METHODS[name](module, layer)(batch, targets)
        with device(), pytest.raises(kind) as found:
            METHODS[name](on_device(module), layer)(on_device(batch), targets)
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_precisions(dtype):
    for name in ("grad-cam", "eigen-cam", "score-cam", "group-cam"):
        model, x = tiny().to(dtype), images().to(dtype)
        expected = METHODS[name](model, "relu2")(x, 1)
        with device():
            found = METHODS[name](on_device(model), "relu2")(on_device(x), 1)
        assert found.dtype == torch.float32
        assert_close(on_host(found), expected, rtol=0, atol=1e-4)


def test_the_device_of_these_tests_sees_what_waits():
    with device() as found:
        x = on_device(torch.tensor([3.0, 0, 1]))
        assert x.sum().item() == 4
        assert bool((x > 0).any())
        assert on_host(x[x > 0]).tolist() == [3, 1]
        assert x.cpu().tolist() == [3, 0, 1]
        x.nonzero()
        torch.equal(x, x)
        torch.linalg.eigh(x.diag())
        torch.zeros(2).to("meta")
        torch.zeros(2).to("meta", non_blocking=True)
        torch.zeros(2).pin_memory().to("meta")
        torch.zeros(2).pin_memory().to("meta", torch.half, non_blocking=True)
        x[torch.tensor([0])]
        assert [wait.partition(": ")[2] for wait in found.waits] == [
            *(
                "_local_scalar_dense",
                "_local_scalar_dense",
                "index by a condition",
                "a copy to the host",
                "nonzero",
                "equal",
            ),
            *("_linalg_eigh", *["a copy from the host that is waited for"] * 4, "index by indices on the host"),
        ]
        found.waits.clear()
        (some,) = where_true(x > 0)
        assert on_host(some).tolist() == [[0], [2]]
        assert found.waits == [ROWS]
        found.waits.clear()
        y = torch.arange(3, device="meta") + functional.move(torch.zeros(1).expand(3), x.device) + 1.0
        y[0] = 5
        assert on_host(y).tolist() == [5, 2, 3]
        assert not found.waits
        with pytest.raises(RuntimeError, match="add got tensors on the host and on the device"):
            x + torch.zeros(3)
        with pytest.raises(RuntimeError, match="a tensor of values was made on the device"):
            x + torch.tensor([1.0, 2, 3], device="meta")
