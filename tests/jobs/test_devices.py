"""Models and inputs that are not all on one device; the second one is on the host too (`waits.py`)."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from comparisons import FEWER, home, is_for_transformers
from models import build, images
from networks import blocks
from representatives import each
from torch import nn
from torch.testing import assert_close
from wait_cases import CLASSES, LAYERS, TARGETS, pictures
from waits import END, device, on_device, on_host

from gradcam_kit import METHODS
from gradcam_kit.capture.deferred_checks import Checks
from gradcam_kit.capture.model import state


@pytest.mark.parametrize("bad", [False, True])
def test_conditions_of_several_devices_are_read_together(bad):
    checks = Checks(blocks())
    with device() as found:
        checks.add(torch.tensor([False, False]), lambda _: None)
        checks.add(on_device(torch.tensor([False, bad])), lambda sample: ValueError(f"sample {sample}"))
        if bad:
            with pytest.raises(ValueError, match="sample 1"):
                checks.raise_first()
        else:
            checks.raise_first()
        assert found.waits == [END]


def spread(model: nn.Module, first: str) -> nn.Module:
    """The model with one part and all behind it on the device; the images and what is in front stay on the host."""
    names = [name for name, module in model.named_modules() if not len(module._modules) or name == first]
    for name in names[names.index(first) :]:
        if name == first or not name.startswith(f"{first}."):
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, on_device(model.get_submodule(name)))
    model.get_submodule(first).register_forward_pre_hook(lambda module, args: tuple(arg.to("meta") for arg in args))
    return model


@pytest.mark.parametrize(("name", "layer"), each(LAYERS))
def test_a_model_spread_over_two_devices(name, layer):
    images, targets = pictures(name), [[0, 1], [2, 3], [4, 0]]
    expected = METHODS[name](home(name), layer, **FEWER.get(name, {})).explain(images, targets)
    # The input of the normalization has to be that of the block, not a copy of it.
    behind = "norm" if name == "vit-recipro-cam" else "blocks.1"
    model = spread(home(name), behind if is_for_transformers(name) else "block2")
    with device():
        found = METHODS[name](model, layer, **FEWER.get(name, {})).explain(images, targets)
    assert {maps.device.type for maps in (found.heatmaps, *found.saliency.values())} == {"cpu"}
    assert_close(found.heatmaps, expected.heatmaps, rtol=0, atol=1e-5)
    assert found.targets.equal(expected.targets)


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_a_model_spread_over_two_devices(kind):
    for name in ("grad-cam", "score-cam", "ablation-cam"):
        expected = METHODS[name](blocks(), "block1")(pictures(), TARGETS[kind]())
        with device():
            found = METHODS[name](spread(blocks(), "block2"), "block1")(pictures(), TARGETS[kind]())
        assert_close(found, expected, rtol=0, atol=1e-5)


def test_random_states_of_all_devices_of_a_model_are_restored(monkeypatch):
    states = {torch.device("cuda", i): i for i in range(2)}
    module = SimpleNamespace(get_rng_state=states.get, set_rng_state=lambda state, own: states.update({own: state}))
    monkeypatch.setattr(torch, "get_device_module", lambda own: module)
    with state._random_states({torch.device("cpu"), *states}):
        states.update(dict.fromkeys(states, 7))
    assert list(states.values()) == [0, 1]

    devices = []
    monkeypatch.setattr(state, "_random_states", lambda found: devices.append(found) or nullcontext())
    with state.untouched(spread(blocks(), "block2"), torch.device("cpu")):
        assert devices == [{torch.device("cpu"), torch.device("meta")}]


@pytest.mark.parametrize("name", ["grad-cam", "score-cam", "ablation-cam", "recipro-cam"])
def test_inputs_that_have_to_stay_on_the_host(name):
    # As the lengths of sequences do that are packed.
    model = build(
        lambda m, x, lengths: m.fc(m.tail(m.layer(x)).mean(2)) * lengths.to(x.device, x.dtype)[:, None],
        layer=nn.Conv1d(3, 4, 3),
        tail=nn.Conv1d(4, 4, 3),
        fc=nn.Linear(4, 5),
    ).double()
    x, lengths = images(3, size=(12,)).double(), torch.tensor([3, 5, 4])
    expected = METHODS[name](model, "layer")((x, lengths), CLASSES)
    with device():
        found = METHODS[name](on_device(model), "layer")((on_device(x), lengths), CLASSES)
    assert_close(on_host(found), expected, rtol=0, atol=1e-5)
