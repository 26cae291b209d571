"""Tests on networks of the demo's architecture: objects by size, earlier layers, two objects, and mosaics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from benchmarks.ground_truth.networks import Grid
from benchmarks.ground_truth.scoring import SLOW, Found, Plan, Subject, Test, score_all, takes_layer
from benchmarks.ground_truth.training import accuracy, train
from gradcam_kit.demo import HELD_OUT, SIZES, DemoNet, Sample, collate, draw
from gradcam_kit.demo.train import augment

_FIRST = HELD_OUT + 10_000
_TRAINING, _STEPS, _BATCH, _IMAGES, _MOSAICS = 3000, 500, 48, 10, 4
_SURE = 0.8
_MOST_DRAWN = 10_000
"""Pictures, before a network that is right or sure of too few of them is taken as it is."""


@lru_cache(maxsize=1)
def _lessons(count: int) -> tuple[Tensor, Tensor]:
    """Pictures of all sizes at half their side, and their classes: drawn once for all networks of a process."""
    sizes = list(SIZES)
    parts = [collate([draw(seed, size=sizes[seed % len(sizes)])]) for seed in range(count)]
    return torch.cat([_halved(one.images) for one in parts]), torch.cat([one.labels for one in parts])


@lru_cache(maxsize=1)
def network(plan: Plan) -> DemoNet:
    """A network of the demo's architecture, trained at half the side; weights, order and augmentation from the seed."""
    images, labels = _lessons(plan.count(_TRAINING))
    steps = plan.count(_STEPS)
    return train(DemoNet, images, labels, steps=steps, batch=_BATCH, seed=plan.seed, augment=augment)


def sizes(plan: Plan) -> dict[str, Found]:
    """Pictures that the network names right, by the size of their object, at the last stage."""
    ordered = sorted(SIZES, key=lambda size: SIZES[size])
    found = {size: score_all(_pictures(plan, "layer4", size), plan) for size in ordered}
    for size in ordered:
        found[size].notes["accuracy"] = _accuracy(plan, size)
    return found


def earlier(plan: Plan) -> dict[str, Found]:
    """The pictures with objects of medium size again, two stages earlier, where the maps are twice as fine."""
    return {"earlier layer": _at_earlier_layer(_pictures(plan, "layer2", "medium"), plan)}


def two_objects(plan: Plan) -> dict[str, Found]:
    """Pictures with objects of two classes that the network both sees: the maps of the two should differ."""
    model, wanted = network(plan), plan.count(_IMAGES)
    images, masks, labels = [], [], []
    for first, second in _pairs(plan):
        near = max_pool2d(torch.from_numpy(first.mask)[None].float(), 17, 1, 8)[0].bool().numpy()
        if (near & second.mask).any():
            continue
        picture = first.picture.copy()
        picture[second.mask] = second.picture[second.mask]
        image = _halved(collate([replace(first, picture=picture)]).images)
        with torch.inference_mode():
            top = set(model(image)[0].topk(2).indices.tolist())
        if top == {first.label, second.label} or plan.scale < 1:
            images.append(image)
            masks.append(torch.stack([_halved_mask(one) for one in (first, second)]))
            labels.append(torch.tensor([first.label, second.label]))
        if len(images) == wanted:
            break
    own = torch.stack(masks)
    subject = Subject(model, "layer4", torch.cat(images), torch.stack(labels), own, is_costly=True)
    other = own.flip(1).flatten(0, 1)

    def share_of_both(heatmaps: Tensor, mine: Tensor) -> Tensor:
        on_own, on_other = ((heatmaps * mask[: len(heatmaps)]).flatten(1).sum(1) for mask in (mine, other))
        return on_own / (on_own + on_other)

    return {"two objects": score_all(subject, plan, share_of_both)}


def mosaics(plan: Plan) -> dict[str, Found]:
    """GridPG at three depths, DiPart and DiFull, on the same mosaics of 2 x 2 pictures that the network is sure of."""
    model = network(plan)
    images, labels = _small_and_sure(plan, 4 * plan.count(_MOSAICS))
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
    for layer in ("layer3", "layer2"):
        deeper = Subject(model, layer, together, targets, masks, True)
        found[f"GridPG, {layer}"] = _at_earlier_layer(deeper, plan)
    for name, isolated in (("DiPart", False), ("DiFull", True)):
        grid = Grid(body, model.fc, isolated=isolated).eval()
        found[name] = score_all(Subject(grid, "joint", together, by_cell, masks, True), plan)
    return found


def _at_earlier_layer(subject: Subject, plan: Plan) -> Found:
    """Without methods that take a pass for each of many positions, and those whose map is of no one layer."""
    reasons = {
        name: "takes too long at this layer" if takes_layer(name) else "does not depend on the layer"
        for name in plan.methods
        if name in (*SLOW, "recipro-cam", "ablation-cam") or not takes_layer(name)
    }
    found = score_all(subject, replace(plan, methods=[name for name in plan.methods if name not in reasons]))
    found.skipped |= reasons
    return found


def _halved(images: Tensor) -> Tensor:
    return avg_pool2d(images, 2)


def _halved_mask(sample: Sample) -> Tensor:
    """Where at least half of the four pixels are on the object."""
    return avg_pool2d(torch.from_numpy(sample.mask)[None].float(), 2)[0] >= 0.5


def _seeds(plan: Plan, offset: int) -> Iterator[int]:
    """Of pictures that no network was trained on, others for each network."""
    first = _FIRST + 100 * plan.seed + offset
    return iter(range(first, first + _MOST_DRAWN))


def _drawn(plan: Plan, size: str, offset: int) -> Iterator[tuple[Sample, Tensor]]:
    for seed in _seeds(plan, offset):
        sample = draw(seed, size=size)
        yield sample, _halved(collate([sample]).images)


def _accuracy(plan: Plan, size: str) -> float:
    samples = [sample for (sample, _), _ in zip(_drawn(plan, size, 0), range(plan.count(60)), strict=False)]
    batch = collate(samples)
    return accuracy(network(plan), _halved(batch.images), batch.labels)


def _pictures(plan: Plan, layer: str, size: str) -> Subject:
    """Pictures that the network names right; a quick run, whose networks have learned nothing, takes all."""
    model, wanted = network(plan), plan.count(_IMAGES)
    images, labels, masks = [], [], []
    for sample, image in _drawn(plan, size, 0):
        with torch.inference_mode():
            right = int(model(image).argmax()) == sample.label
        if right or plan.scale < 1:
            images.append(image)
            labels.append(sample.label)
            masks.append(_halved_mask(sample))
        if len(images) == wanted:
            break
    return Subject(model, layer, torch.cat(images), torch.tensor(labels), torch.stack(masks), is_costly=True)


def _pairs(plan: Plan) -> Iterator[tuple[Sample, Sample]]:
    """Two pictures of medium objects of different classes."""
    for number, seed in enumerate(_seeds(plan, 20_000)):
        first = draw(2 * seed, size="medium")
        yield first, draw(2 * seed + 1, size="medium", label=(first.label + 1 + number % 7) % 8)


def _small_and_sure(plan: Plan, n: int) -> tuple[Tensor, Tensor]:
    """Pictures of large objects of which the network is sure; four of a mosaic differ in class."""
    model = network(plan)
    images: list[Tensor] = []
    labels: list[int] = []
    for seed in _seeds(plan, 50_000):
        label = seed % 8
        if label in labels[len(labels) - len(labels) % 4 :]:
            continue
        image = _halved(collate([draw(seed, size="large", label=label)]).images)
        with torch.inference_mode():
            is_sure = float(model(image).softmax(1)[0, label]) > _SURE
        if is_sure or plan.scale < 1:
            images.append(image[0])
            labels.append(label)
        if len(images) == n:
            break
    return torch.stack(images), torch.tensor(labels)


_on_shapes = partial(Test, has_networks=True, group="shapes")
TESTS = (
    _on_shapes(
        "sizes",
        "Networks of the demo's architecture on pictures that they name right, by the size of the object, at the last "
        "stage",
        "share of the map on the object",
        sizes,
    ),
    _on_shapes(
        "earlier layer",
        "The pictures of medium objects again, at a layer two stages earlier",
        "share of the map on the object",
        earlier,
    ),
    _on_shapes(
        "two objects",
        "Two objects of two classes in one picture, both explained",
        "of the map's share on the two objects, the part on the one that is explained",
        two_objects,
    ),
    _on_shapes(
        "mosaics",
        "Four pictures side by side: the whole seen at once (GridPG, also one and two stages earlier), the classes of "
        "each cell computed from its own positions (DiPart), or each cell seen by itself (DiFull)",
        "share of the map in the cell of the class",
        mosaics,
    ),
)
