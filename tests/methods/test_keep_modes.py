"""MC dropout: modules that are in train mode on purpose stay in it, where that is asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from traces import unchanged

from gradcam_kit import EigenSmooth, GradCAM, LayerCAM, ScoreCAM, Smooth, compare, explain_all

IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    model[3].train()
    return model


def by_hand(model: nn.Sequential, target: int) -> Tensor:
    """Grad-CAM at the ReLU with the dropout that the global generator draws next."""
    maps = model[:3](IMAGES).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(model[3:](maps)[:, target].sum(), maps)
    saliency = (gradients.mean((2, 3), keepdim=True) * maps).sum(1)
    return saliency.detach()


def test_the_map_is_that_of_the_drawn_dropout() -> None:
    model = make()
    cam = GradCAM(model, "2", keep_modes=True)
    torch.manual_seed(7)
    expected = by_hand(model, 1)
    torch.manual_seed(7)
    first, second = (cam.explain(IMAGES, 1).saliency["2"] for _ in range(2))
    torch.testing.assert_close(first, expected)
    assert not torch.allclose(first, second)  # draws go on, as in plain passes
    torch.manual_seed(7)
    assert torch.equal(cam.explain(IMAGES, 1).saliency["2"], first)
    assert model[3].training
    assert not model[1].training


@pytest.mark.parametrize("method", [GradCAM, LayerCAM, ScoreCAM])
def test_by_default_every_module_is_evaluated(method: Any) -> None:
    model = make()
    with unchanged(model):
        assert torch.equal(method(model, "2")(IMAGES, 1), method(make().eval(), "2")(IMAGES, 1))
    with unchanged(model.eval()):  # nothing is random where nothing is in train mode
        kept = method(model, "2", keep_modes=True)(IMAGES, 1)
    assert torch.equal(kept, method(model, "2")(IMAGES, 1))


@pytest.mark.parametrize("make_cam", [GradCAM, ScoreCAM], ids=["gradients", "masks"])
def test_statistics_are_put_back(make_cam: Any) -> None:
    model = make().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    make_cam(model, "2", keep_modes=True)(IMAGES, 1)
    GradCAM(model, keep_modes=True)(IMAGES)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_explain_all_shares_draws_and_can_ask_for_them() -> None:
    model = make()
    cams = [GradCAM(model, "2"), GradCAM(model, "2", keep_modes=True), GradCAM(model, "2", keep_modes=True)]
    own, first, second = explain_all(cams, IMAGES, 1)
    assert torch.equal(own, GradCAM(model, "2")(IMAGES, 1))
    assert torch.equal(first, second)
    assert not torch.equal(own, first)
    one, other = explain_all([cams[0]] * 2, IMAGES, 1, keep_modes=True)
    assert torch.equal(one, other)
    assert not torch.equal(one, own)
    assert not cams[0].keep_modes
    assert torch.equal(explain_all([cams[1]], IMAGES, 1, keep_modes=False)[0], own)


def test_comparisons_and_wrappers() -> None:
    model = make()
    options: dict[str, Any] = {"target_layers": "2", "targets": 1, "cost": False}
    plain = compare(model, IMAGES, ["grad-cam"], **options).heatmaps["grad-cam"]
    found = [compare(model, IMAGES, ["grad-cam"], keep_modes=True, **options).heatmaps["grad-cam"] for _ in range(2)]
    assert torch.equal(plain, GradCAM(model, "2")(IMAGES, 1))
    assert not torch.equal(found[0], found[1])
    measured = compare(model, IMAGES, ["grad-cam"], metrics=["average-drop"], keep_modes=True, **options)
    assert measured.table["average-drop"].notna().all()
    cam = GradCAM(model, "2", keep_modes=True)
    for wrapped in (EigenSmooth(cam), Smooth(cam, samples=2)):
        assert not torch.equal(wrapped(IMAGES, 1), wrapped(IMAGES, 1))
    assert "keep_modes=True" in repr(cam)
