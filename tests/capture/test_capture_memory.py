"""What a call holds in memory is freed with its result, or with its error."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from evidence import ON_CNNS, quick, subject
from models import conv_model, images, tiny
from representatives import each
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from traces import FaultError, fault

from gradcam_kit import GradCAM, explain_all
from gradcam_kit.errors import ClassIndexError

INPUT = images(2, size=(8, 8))


def watched(model: nn.Module) -> list[weakref.ref[Tensor]]:
    """Weak references to the output of every module, which hold the graph."""
    seen: list[weakref.ref[Tensor]] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen.extend(weakref.ref(leaf) for leaf in tree_leaves((output, args)) if isinstance(leaf, Tensor))

    for module in model.modules():
        module.register_forward_hook(hook)
    return seen


@pytest.mark.parametrize("name", each())
def test_nothing_is_kept_once_the_result_is_dropped(name: str) -> None:
    model, _ = subject(name)
    seen = watched(model)
    cam = quick(name)(model)
    gc.disable()  # not even a cycle that waits for the collector
    try:
        cam(INPUT.clone())
        assert len(seen) >= 12
        assert all(reference() is None for reference in seen)
        explanation = cam.explain(INPUT.clone())
        alive = [reference() for reference in seen if reference() is not None]
        assert all(not tensor.requires_grad for tensor in alive)
        assert all(tensor.untyped_storage().data_ptr() == explanation.output.data_ptr() for tensor in alive)
        del explanation, alive
        assert all(reference() is None for reference in seen)
    finally:
        gc.enable()


def test_nothing_is_kept_once_an_error_is_dropped() -> None:
    model = tiny()
    seen = watched(model)
    cam = GradCAM(model, "relu2")
    for targets in (fault, 99):
        with pytest.raises((FaultError, ClassIndexError)):
            cam(INPUT.clone(), targets)
    gc.collect()
    assert seen
    assert all(reference() is None for reference in seen)


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_memory_is_flat_over_many_calls() -> None:
    model = tiny()
    cams = [quick(name)(model, "relu2") for name in ON_CNNS]
    explain_all(cams, INPUT)
    before = tensors_alive()
    for _ in range(30):
        GradCAM(model, "relu2")(INPUT)
    explain_all(cams, INPUT)
    assert tensors_alive() == before


def test_a_cam_object_can_be_copied_and_dropped_with_its_model() -> None:
    model = conv_model()
    cam = GradCAM(model, "layer")
    expected = cam(INPUT)
    twin = copy.deepcopy(cam)
    assert twin.model is not model
    assert torch.equal(twin(INPUT), expected)
    reference = weakref.ref(model)
    del model, cam
    gc.collect()
    assert reference() is None
