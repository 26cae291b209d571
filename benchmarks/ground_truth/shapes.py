"""Tests on the bundled demo model: objects by size, an earlier layer, two objects, and mosaics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from benchmarks.ground_truth.networks import Grid
from benchmarks.ground_truth.scoring import SLOW, Found, Plan, Subject, Test, score_all
from gradcam_kit.demo import HELD_OUT, SIZES, DemoNet, Sample, collate, draw, load_demo_model

_FIRST = HELD_OUT + 10_000
_SURE = 0.8


def sizes(plan: Plan) -> dict[str, Found]:
    """Held-out pictures of the demo, by the size of their object, at the last stage."""
    model = load_demo_model()
    return {
        size: score_all(_pictures(model, "layer4", _drawn(plan.count(24), size=size)), plan)
        for size in sorted(SIZES, key=lambda size: SIZES[size])
    }


def earlier(plan: Plan) -> dict[str, Found]:
    """The pictures with objects of medium size again, two stages earlier, where the maps are twice as fine."""
    subject = _pictures(load_demo_model(), "layer2", _drawn(plan.count(24), size="medium"))
    slow = (*SLOW, "recipro-cam")  # a pass for each of 32 x 32 positions
    found = score_all(subject, Plan([name for name in plan.methods if name not in slow], plan.scale, plan.seed))
    found.skipped |= {name: "takes too long at this layer" for name in slow if name in plan.methods}
    return {"earlier layer": found}


def two_objects(plan: Plan) -> dict[str, Found]:
    """Pictures with objects of two classes that the model both sees: the maps of the two should differ."""
    model = load_demo_model()
    samples: list[Sample] = []
    masks, labels = [], []
    seed = _FIRST + 1000
    wanted = plan.count(24)
    while len(samples) < wanted:
        first = draw(seed, size="medium")
        second = draw(seed + 1, size="medium", label=(first.label + 1 + seed % 7) % 8)
        seed += 2
        near = max_pool2d(torch.from_numpy(first.mask)[None].float(), 17, 1, 8)[0].bool().numpy()
        if (near & second.mask).any():
            continue
        picture = first.picture.copy()
        picture[second.mask] = second.picture[second.mask]
        pair = Sample(picture, first.mask | second.mask, first.label, "medium")
        with torch.inference_mode():
            top = set(model(collate([pair]).images)[0].topk(2).indices.tolist())
        if top == {first.label, second.label}:
            samples.append(pair)
            masks.append(torch.stack([torch.from_numpy(one.mask) for one in (first, second)]))
            labels.append(torch.tensor([first.label, second.label]))
    own = torch.stack(masks)
    subject = Subject(model, "layer4", collate(samples).images, torch.stack(labels), own, is_costly=True)
    other = own.flip(1).flatten(0, 1)

    def share_of_both(heatmaps: Tensor, mine: Tensor) -> Tensor:
        on_own, on_other = ((heatmaps * mask[: len(heatmaps)]).flatten(1).sum(1) for mask in (mine, other))
        return on_own / (on_own + on_other)

    return {"two objects": score_all(subject, plan, share_of_both)}


def mosaics(plan: Plan) -> dict[str, Found]:
    """GridPG, DiPart and DiFull on the same mosaics of 2 x 2 pictures that the model is sure of, at a quarter size."""
    model = load_demo_model()
    images, labels = _small_and_sure(model, 4 * plan.count(12))
    cells = images.unflatten(0, (-1, 4))
    together = torch.cat([torch.cat([cells[:, 0], cells[:, 1]], 3), torch.cat([cells[:, 2], cells[:, 3]], 3)], 2)
    side = together.shape[-1] // 2
    masks = torch.zeros(len(together), 4, 2 * side, 2 * side, dtype=torch.bool)
    for cell in range(4):
        top, left = side * (cell // 2), side * (cell % 2)
        masks[:, cell, top : top + side, left : left + side] = True
    targets = labels.unflatten(0, (-1, 4))
    body = nn.Sequential(model.conv1, model.bn1, model.relu, model.layer1, model.layer2, model.layer3, model.layer4)
    by_cell = targets + model.fc.out_features * torch.arange(4)
    found = {"GridPG": score_all(Subject(model, "layer4", together, targets, masks, True), plan)}
    for name, isolated in (("DiPart", False), ("DiFull", True)):
        grid = Grid(body, model.fc, isolated=isolated).eval()
        found[name] = score_all(Subject(grid, "joint", together, by_cell, masks, True), plan)
    return found


def _drawn(n: int, size: str) -> list[Sample]:
    return [draw(_FIRST + number, size=size) for number in range(n)]


def _pictures(model: DemoNet, layer: str, samples: list[Sample]) -> Subject:
    batch = collate(samples)
    return Subject(model, layer, batch.images, batch.labels, batch.masks, is_costly=True)


def _small_and_sure(model: DemoNet, n: int) -> tuple[Tensor, Tensor]:
    """Pictures of large objects at half the side, of which the model is sure; four of a mosaic differ in class."""
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
        "sizes",
        "The demo model on held-out pictures, by the size of the object, at its last stage",
        "share of the map on the object",
        sizes,
    ),
    Test(
        "earlier layer",
        "The pictures of medium objects again, at a layer two stages earlier",
        "share of the map on the object",
        earlier,
    ),
    Test(
        "two objects",
        "Two objects of two classes in one picture, both explained",
        "of the map's share on the two objects, the part on the one that is explained",
        two_objects,
    ),
    Test(
        "mosaics",
        "Four pictures side by side: the whole seen at once (GridPG), the classes of each cell computed from its own "
        "positions (DiPart), or each cell seen by itself (DiFull)",
        "share of the map in the cell of the class",
        mosaics,
    ),
)
