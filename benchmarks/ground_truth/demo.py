"""Test the bundled demo model, trained longer than the others, on its own images, whose classes are outlines."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.ground_truth.objects import at_earlier_layer, mosaics_of, with_reasons
from benchmarks.ground_truth.scoring import THIRD, Found, Plan, Subject, Test, score_all
from benchmarks.ground_truth.training import accuracy
from gradcam_kit.demo import HELD_OUT, DemoNet, collate, draw, load_demo_model

_FIRST = HELD_OUT + 10_000
_IMAGES, _MOSAICS = 16, 6
_SURE = 0.8


def demo(plan: Plan) -> dict[str, Found]:
    """Score medium objects at the last stage and two stages earlier, and GridPG at three depths."""
    model = load_demo_model()
    batch = collate([draw(_FIRST + number, size="medium") for number in range(plan.count(_IMAGES))])
    subject = Subject(model, "layer4", batch.images, batch.labels, batch.masks, parts=THIRD)
    images, labels = _small_and_sure(model, 4 * plan.count(_MOSAICS))
    together, masks = mosaics_of(images.unflatten(0, (-1, 4)))
    grid = Subject(model, "layer4", together, labels.unflatten(0, (-1, 4)), masks, parts=THIRD)
    found = {}
    for name, deepest, layers, right in (
        ("demo", subject, ("layer4", "layer2"), accuracy(model, batch.images, batch.labels)),
        ("demo, GridPG", grid, ("layer4", "layer3", "layer2"), accuracy(model, images, labels)),
    ):
        found[name] = score_all(deepest, plan)
        for layer in layers[1:]:
            scored = score_all(replace(deepest, layer=layer), at_earlier_layer(plan))
            found[f"{name}, {layer}"] = with_reasons(scored, plan)
        for own in (name, *(f"{name}, {layer}" for layer in layers[1:])):
            found[own].notes["accuracy"] = right
    return found


def _small_and_sure(model: DemoNet, n: int) -> tuple[Tensor, Tensor]:
    """Return images of large objects at half size that the model classifies with confidence, and their classes.

    The four images of each mosaic differ in class.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    seed = _FIRST + 5000
    while len(images) < n:
        label = seed % 8
        seed += 1
        if label in labels[len(labels) - len(labels) % 4 :]:
            continue
        image = avg_pool2d(collate([draw(seed, size="large", label=label)]).images, 2)
        with torch.inference_mode():
            if float(model(image).softmax(1)[0, label]) > _SURE:
                images.append(image[0])
                labels.append(label)
    return torch.stack(images), torch.tensor(labels)


TESTS = (
    Test(
        "demo",
        "The bundled demo model, which names outlines: medium objects at the last stage and two stages earlier, and "
        "mosaics at three depths",
        "share of the map on the object, or in the cell of the class",
        demo,
    ),
)
