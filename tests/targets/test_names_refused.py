"""Names that stand for no class, and outputs and models of other kinds than classifiers: what the advice is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_kit import GradCAM
from gradcam_kit.capture import check_model
from gradcam_kit.errors import GradCamKitError, InputError, TargetError, UnknownNameError

IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A small network that returns what `end` makes of its maps and class scores."""

    def __init__(self, end: Any = lambda maps, scores: scores) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head, self.end = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 4), end

    def forward(self, images: Tensor) -> Any:
        maps = self.features(images).relu()
        return self.end(maps, self.head(maps.mean((2, 3))))


def test_names_that_stand_for_no_class() -> None:
    model = Net().eval()
    with pytest.raises(InputError, match=r"names in model.class_names"):
        GradCAM(model, "features")(IMAGES, "cat")
    model.class_names = ["cat", "dog"]
    with pytest.raises(TargetError, match="carries 2 class names but has 4 outputs"):
        GradCAM(model, "features")(IMAGES, "cat")
    model.class_names = ["cat", "dog", "cat", "cup"]
    with pytest.raises(UnknownNameError, match="'cat' is the name of 2 classes, 0 and 2; give the index of one"):
        GradCAM(model, "features")(IMAGES, "cat")
    with pytest.raises(UnknownNameError, match="no class 'dogg' among the model's 4 classes; did you mean 'dog'"):
        GradCAM(model, "features")(IMAGES, ["cup", "dogg"])
    model.class_names = "cat"
    with pytest.raises(InputError, match=r"Net.class_names is a str; expected one name for each class"):
        GradCAM(model, "features")(IMAGES, "cat")


@pytest.mark.parametrize(
    "end",
    [
        lambda maps, scores: (maps[:, :1], scores),
        lambda maps, scores: {"mask": maps[:, :2], "label": scores},
        lambda maps, scores: [scores, maps, maps[:, :3]],
    ],
    ids=["tuple", "mapping", "list"],
)
def test_class_scores_beside_masks_are_found(end: Any) -> None:
    expected = GradCAM(Net().eval(), "features")(IMAGES, 2)
    torch.testing.assert_close(GradCAM(Net(end).eval(), "features")(IMAGES, 2), expected)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda maps, scores: (maps, maps.mean((2, 3))), r"such as lambda output: output\[1\]\[:, 5\]"),
        (lambda maps, scores: {"boxes": maps.flatten(2), "label": scores}, r"lambda output: output\['label'\]\[:, 3\]"),
        (lambda maps, scores: (scores, scores), r"such as lambda output: output\[0\]\[:, 3\]"),
    ],
    ids=["a summary of the maps", "tokens", "two of them"],
)
def test_other_outputs_are_not_guessed(end: Any, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        GradCAM(Net(end).eval(), "features")(IMAGES, 2)


class Meta(Net):
    """Takes a list with a mapping per image, as detection models do."""

    def forward(self, batched: list[dict[str, Tensor]]) -> Any:
        return super().forward(torch.stack([one["image"] for one in batched]))


@pytest.mark.parametrize(
    "inputs",
    [
        [{"image": IMAGES[0]}],
        [{"image": IMAGES[0]}, {"image": IMAGES[1]}],
        ([{"image": IMAGES[0]}],),
        {"batched": [{"image": IMAGES[0], "height": 24}]},
        ([IMAGES[0], IMAGES[1]],),
    ],
)
def test_tensors_inside_of_lists_need_a_wrapper(inputs: Any) -> None:
    with pytest.raises(InputError, match=r"wrap the model in a module whose forward\(images\) takes one tensor"):
        GradCAM(Meta().eval(), "features")(inputs, lambda output: output[:, 0])


def test_bytes_are_told_from_images_that_are_not_scaled() -> None:
    with pytest.raises(InputError, match=r"images.float\(\) / 255; for a model that scales bytes itself, pass"):
        GradCAM(Net().eval())((IMAGES * 255).byte())


class YOLO(nn.Module):
    """A module whose call predicts with all around it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def predict(self, source: Any) -> list[Any]:
        return [source]

    __call__ = predict


class Pipeline:
    """Not a module, but it holds one."""

    model = Net()


@pytest.mark.parametrize(("wrapper", "name"), [(YOLO(), "YOLO"), (Pipeline(), "Pipeline")])
def test_a_wrapper_is_named_with_the_module_that_it_holds(wrapper: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"pass the module in the attribute 'model' of this {name}$"):
        check_model(wrapper)
    assert GradCAM(wrapper.model.eval(), "features")(IMAGES).shape == (2, 24, 24)


def test_a_module_with_a_call_of_its_own_is_no_wrapper() -> None:
    class Counting(Net):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().__call__(*args, **kwargs)

    assert GradCAM(Counting().eval(), "features")(IMAGES).shape == (2, 24, 24)


def test_every_refusal_is_one_line() -> None:
    for call in (lambda: GradCAM(YOLO()), lambda: GradCAM(Net())([{"image": IMAGES[0]}])):
        with pytest.raises(GradCamKitError) as caught:
            call()
        assert "\n" not in str(caught.value)
