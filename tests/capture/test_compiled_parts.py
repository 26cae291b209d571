"""Parts that were compiled beside the target layers run compiled where no hook would be ignored, with the same maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from comparisons import FEWER
from models import build, images, seeded, tiny
from representatives import each
from test_capture_wrappers import Backend
from traces import unchanged

from gradcam_kit import METHODS, GradCAM
from gradcam_kit.capture import compile_around, rescoring
from gradcam_kit.errors import CaptureError

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at each

INPUT = images(3, size=(8, 8))
TARGETS = torch.tensor([[0, 1], [2, 3], [4, 0]])
# Their hooks lie in the parts too, or they change what single operations hand back.
EAGER = {
    "ablation-cam",
    "balanced-cam",
    "full-grad",
    "guided-backprop",
    "guided-grad-cam",
    "recipro-cam",
    "shapley-cam",
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def compiled(*layers: str) -> tuple[torch.nn.Module, Backend]:
    model, backend = tiny(), Backend()
    compile_around(model, layers, backend=backend)
    return model, backend


@pytest.mark.parametrize("name", each())
def test_every_method_gives_the_same_maps(name: str) -> None:
    model, backend = compiled("stage2")
    try:
        expected = METHODS[name](tiny(), "stage2", **FEWER.get(name, {}))(INPUT, TARGETS)
    except CaptureError:
        pytest.skip("not for such a model")
    with unchanged(model, INPUT):
        found = METHODS[name](model, "stage2", **FEWER.get(name, {}))(INPUT, TARGETS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (backend.runs == 0) == (name in EAGER)


def test_other_layers_are_reached_too() -> None:
    model, backend = compiled("stage2")
    heatmaps = GradCAM(model, "stage1")(INPUT)
    torch.testing.assert_close(heatmaps, GradCAM(tiny(), "stage1")(INPUT), atol=1e-5, rtol=1e-5)
    assert backend.runs == 0


def test_changed_images_are_scored_by_compiled_parts() -> None:
    model, backend = compiled("stage2")
    with unchanged(model, INPUT), rescoring(model, INPUT) as rescore:
        found = rescore(INPUT, torch.arange(3))
    assert backend.runs > 0
    with torch.no_grad():
        torch.testing.assert_close(found, tiny()(INPUT).softmax(1).amax(1), atol=1e-5, rtol=1e-5)


def test_one_map_of_a_layer_that_returns_several_is_reached() -> None:
    class Pyramid(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 3)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.first(x)
            return [y, self.second(y)]

    model = seeded(build(lambda m, x: m.fc(m.pyramid(x)[1].mean((2, 3))), pyramid=Pyramid(), fc=torch.nn.Linear(5, 3)))
    expected, backend = GradCAM(model, "pyramid:1")(INPUT), Backend()
    compile_around(model, ["pyramid:1"], backend=backend)
    torch.testing.assert_close(GradCAM(model, "pyramid:1")(INPUT), expected, atol=1e-5, rtol=1e-5)
    assert backend.runs > 0


def test_many_parts_are_all_compiled() -> None:
    """The compiler counts them towards one limit, above which it gives up."""
    parts = {f"conv{i}": torch.nn.Conv2d(3, 3, 1) for i in range(12)}
    model = seeded(
        build(lambda m, x: m.last(_through(m, parts, x)).mean((2, 3)), last=torch.nn.Conv2d(3, 4, 1), **parts)
    )
    expected, backend = GradCAM(model, "last")(INPUT), Backend()
    compile_around(model, ["last"], backend=backend)
    torch.testing.assert_close(GradCAM(model, "last")(INPUT), expected, atol=1e-5, rtol=1e-5)
    assert backend.runs == len(parts)


def _through(model: torch.nn.Module, names: Iterable[str], x: torch.Tensor) -> torch.Tensor:
    for name in names:
        x = model.get_submodule(name)(x)
    return x


def test_a_module_with_two_names_that_holds_the_layer_is_not_compiled() -> None:
    model = seeded(
        build(
            lambda m, x: m.fc(m.body(m.first(x)).mean((2, 3))),
            first=torch.nn.Conv2d(3, 4, 3),
            body=torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU()),
            fc=torch.nn.Linear(4, 3),
        )
    )
    model.alias = model.body
    compile_around(model, ["alias.0"], backend=Backend())
    assert model.body._compiled_call_impl is None
    assert model.first._compiled_call_impl is not None
