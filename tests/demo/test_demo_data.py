"""The demo's pictures, masks, model and training."""

from __future__ import annotations

from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gradcam_kit.demo import (
    CLASS_NAMES,
    HELD_OUT,
    SIZES,
    DemoNet,
    collate,
    draw,
    draw_batches,
    load_demo_model,
    sample_pictures,
)
from gradcam_kit.demo.data import Sample, draw_sample_pictures, write_sample_pictures
from gradcam_kit.demo.network import CHECKPOINT
from gradcam_kit.demo.shapes import SHAPES
from gradcam_kit.demo.train import accuracies, save_checkpoint, train
from gradcam_kit.errors import ClassIndexError, UnknownNameError


@pytest.fixture(scope="module")
def held_out() -> list[Sample]:
    return [draw(HELD_OUT + 500 + number) for number in range(96)]


@pytest.fixture(scope="module")
def model() -> DemoNet:
    return load_demo_model()


def last_activations(model: DemoNet, images: Tensor) -> Tensor:
    stem = model.relu(model.bn1(model.conv1(images)))
    return model.layer4(model.layer3(model.layer2(model.layer1(stem))))


def grown(masks: Tensor, pixels: int) -> Tensor:
    return nn.functional.max_pool2d(masks[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0


# The drawing


def test_a_seed_decides_the_sample_and_nothing_else_does() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = draw(7), draw(7), draw(8)
    assert np.array_equal(first.picture, again.picture)
    assert np.array_equal(first.mask, again.mask)
    assert (first.label, first.size) == (again.label, again.size)
    assert not np.array_equal(first.picture, other.picture)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_the_mask_covers_the_share_of_its_size_and_lies_inside(label: int, size: str) -> None:
    low, high = SIZES[size]
    for seed in range(4):
        sample = draw(seed, label=label, size=size)
        assert (sample.label, sample.size) == (label, size)
        assert sample.picture.shape == (128, 128, 3)
        assert 0.95 * low < sample.mask.mean() < 1.05 * high
        assert not np.concatenate([sample.mask[[0, -1]], sample.mask[:, [0, -1]].T]).any()


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("disc", [(0, 0), (0.9, 0)], [(1.1, 0)]),
        ("ring", [(0.76, 0), (0, -0.76)], [(0, 0), (1.1, 0)]),
        ("triangle", [(0.9, 0), (-0.4, 0.7)], [(-0.6, 0), (0.5, 0.5)]),
        ("square", [(0.9, 0), (0.4, 0.4)], [(0.6, 0.6)]),
        ("star", [(0.9, 0), (0, 0)], [(-0.6, 0)]),
        ("cross", [(0.9, 0.2), (0.2, -0.9)], [(0.5, 0.5)]),
        ("crescent", [(-0.6, 0)], [(0, 0), (0.5, 0), (-1.1, 0)]),
        ("heart", [(0, 0.9), (0.8, -0.8), (-0.8, -0.8)], [(0, -1.1), (0.8, 0.6)]),
    ],
)
def test_shapes_have_their_outline(
    name: str, inside: list[tuple[float, float]], outside: list[tuple[float, float]]
) -> None:
    for points, sign in ((inside, -1), (outside, 1)):
        x, y = np.array(points, dtype=float).T[:, None]
        assert (np.sign(SHAPES[name](x, y)) == sign).all()


def test_distances_are_euclidean_outside_of_a_square() -> None:
    x, y = np.array([[2.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    assert SHAPES["square"](x, y)[0] == pytest.approx([1.0, np.sqrt(0.5), -np.sqrt(0.5)])


@pytest.mark.parametrize("seed", range(6))
def test_the_class_changes_the_shape_only(seed: int) -> None:
    disc, ring = draw(seed, label=0, size="medium"), draw(seed, label=1, size="medium")
    near = grown(torch.from_numpy(np.stack([disc.mask, ring.mask])), 12).any(0).numpy()
    assert np.array_equal(disc.picture[~near], ring.picture[~near])
    colors = [np.median(sample.picture[sample.mask], axis=0) for sample in (disc, ring)]
    assert np.abs(colors[0] - colors[1]).max() < 40


def test_the_mask_is_where_the_object_is() -> None:
    for seed in range(6):
        sample = draw(seed, size="large")
        pixels = sample.picture.astype(float)
        core, rest = pixels[sample.mask].mean(0), pixels[~sample.mask].mean(0)
        assert np.linalg.norm(core - rest) > 50


def test_every_class_and_every_size_occurs(held_out: list[Sample]) -> None:
    assert {sample.label for sample in held_out} == set(range(len(CLASS_NAMES)))
    assert {sample.size for sample in held_out} == set(SIZES)


@pytest.mark.parametrize("label", [-1, 8])
def test_a_class_that_does_not_exist(label: int) -> None:
    with pytest.raises(ClassIndexError, match=f"no class {label}: the demo has 8 classes"):
        draw(0, label=label)


def test_a_size_that_does_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'large'"):
        draw(0, size="larg")


def test_batches_are_normalized_samples() -> None:
    batches = list(draw_batches(range(5), batch_size=2))
    assert [len(batch.labels) for batch in batches] == [2, 2, 1]
    images, labels, masks = batches[1]
    sample = draw(3)
    assert images.dtype == torch.float32
    assert labels[1] == sample.label
    assert np.array_equal(masks[1].numpy(), sample.mask)
    expected = (sample.picture[5, 9] / 255 - 0.5) / 0.25
    assert images[1, :, 5, 9].numpy() == pytest.approx(expected, abs=1e-5)


# The bundled pictures


def test_bundled_pictures_are_the_drawings_of_their_seeds() -> None:
    bundled, drawn = sample_pictures(), draw_sample_pictures()
    assert [picture.name for picture in bundled] == list(drawn)
    assert sorted(picture.label for picture in bundled) == list(range(len(CLASS_NAMES)))
    assert {sample.size for sample in drawn.values()} == set(SIZES)
    for picture, sample in zip(bundled, drawn.values(), strict=True):
        assert picture.path.stem == f"{picture.path.stem[:2]}-{CLASS_NAMES[picture.label]}-{sample.size}"
        assert picture.label == sample.label
        # The last bit of a sine may differ between processors, and with it a rounded value.
        assert np.abs(picture.picture.astype(int) - sample.picture).max() <= 1
        assert (picture.mask != sample.mask).sum() <= 2


def test_pictures_can_be_written_again(tmp_path: Path) -> None:
    write_sample_pictures(tmp_path / "pictures")
    names = {f"{picture.name}.png" for picture in sample_pictures()}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names
    assert {path.name for path in (tmp_path / "masks").iterdir()} == names


# The model


def test_the_checkpoint_is_small_and_the_model_ready() -> None:
    model = load_demo_model()
    assert CHECKPOINT.stat().st_size < 1_000_000
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.class_names == CLASS_NAMES
    assert model.transform == {"size": (128, 128), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert last_activations(model, torch.zeros(1, 3, 128, 128)).shape == (1, 96, 16, 16)


def test_the_model_recognizes_held_out_pictures(model: DemoNet, held_out: list[Sample]) -> None:
    assert accuracies(model, held_out)["all"] >= 0.95


def test_the_model_recognizes_the_bundled_pictures(model: DemoNet) -> None:
    samples = list(draw_sample_pictures().values())
    assert accuracies(model, samples)["all"] == 1


@pytest.mark.parametrize("size", SIZES)
def test_the_evidence_sits_on_the_object(model: DemoNet, size: str) -> None:
    images, labels, masks = collate([draw(HELD_OUT + 900 + number, size=size) for number in range(24)])
    with torch.inference_mode():
        evidence = torch.einsum("nk,nkhw->nhw", model.fc.weight[labels], last_activations(model, images)).relu()
    maps = nn.functional.interpolate(evidence[:, None], scale_factor=8, mode="bilinear", align_corners=False)[:, 0]
    inside = (maps * masks).sum((1, 2)) / maps.sum((1, 2))
    share = masks.float().mean((1, 2))
    assert (inside / share).mean() > {"small": 8, "medium": 5, "large": 3}[size]
    near = grown(masks, 8)
    assert ((maps * near).sum((1, 2)) / maps.sum((1, 2))).mean() > 0.7


def test_positions_stand_in_the_middle_of_what_they_see() -> None:
    model = DemoNet().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
    images = torch.ones(1, 3, 128, 128, requires_grad=True)
    (gradient,) = torch.autograd.grad(last_activations(model, images)[0, 0, 7, 8], images)
    weights, pixels = gradient[0, 0], torch.arange(128.0)
    assert (weights.sum(1) @ pixels / weights.sum()).item() == pytest.approx(7 * 8 + 3.5, abs=0.01)
    assert (weights.sum(0) @ pixels / weights.sum()).item() == pytest.approx(8 * 8 + 3.5, abs=0.01)


def test_training_repeats_itself_and_writes_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [draw(seed, size="large") for seed in range(64)]
    first, again = (train(samples, epochs=0, seed=3).state_dict() for _ in range(2))
    assert all(torch.allclose(first[name].float(), again[name].float(), atol=1e-5) for name in first)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert all(1.5 < loss < 3 for loss in losses)
    model = DemoNet()
    model.load_state_dict(first)
    save_checkpoint(model, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["fc.weight"].dtype == torch.float16
    assert torch.allclose(stored["fc.weight"].float(), first["fc.weight"], rtol=1e-3, atol=1e-6)


def test_importing_the_demo_is_light() -> None:
    code = "import sys, gradcam_kit.demo; print(sorted({'cv2', 'PIL', 'skimage', 'pandas'} & set(sys.modules)))"
    assert forked.run(code).stdout.strip() == "[]"
