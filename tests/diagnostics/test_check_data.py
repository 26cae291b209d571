"""Faults planted into data, and their healthy twins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import batch, images, labels, normalized, said, shapes
from torch.utils.data import DataLoader, TensorDataset

from gradcam_kit.diagnostics.checks.data import check_data
from gradcam_kit.errors import InputError, OptionError, ShapeError


def test_healthy_data_is_silent() -> None:
    pixels = normalized(shapes(0, 40))
    assert check_data([(pixels[:20], labels(20)), (pixels[20:], labels(20, 1))], classes=4) == []
    assert check_data([(pixels, labels(40))], [(normalized(shapes(100, 40)), labels(40))], classes=4) == []
    assert check_data([batch()], classes=["a", "b", "c", "d"]) == []


def test_pixels_that_are_not_scaled() -> None:
    found = check_data([(255 * shapes(0, 16), labels(16))])
    assert said(found) == [("bad", "range"), ("bad", "normalization")]
    assert found[0].value == pytest.approx(255)
    bytes_of = (255 * shapes(0, 16)).to(torch.uint8)
    assert said(check_data([(bytes_of, labels(16))])) == [("warn", "range")]


def test_pixels_that_are_not_normalized() -> None:
    assert said(check_data([(shapes(0, 16), labels(16))])) == [("warn", "normalization")]


@pytest.mark.parametrize("twice", ["imagenet", "half", "far"])
def test_pixels_that_are_normalized_twice(twice: str) -> None:
    pixels = shapes(0, 16)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 1
    changed = {
        "imagenet": normalized(normalized(pixels)),
        "half": ((pixels - 0.5) / 0.5 - 0.5) / 0.5,
        "far": normalized(pixels) * 4 - 2,
    }[twice]
    [finding] = check_data([(changed, labels(16))])
    assert (finding.level, finding.kind) == ("bad", "normalization")
    assert "twice" in finding.message
    assert check_data([(normalized(pixels), labels(16))]) == []
    assert check_data([((pixels - 0.5) / 0.5, labels(16))]) == []


@pytest.mark.parametrize("quality", [None, 90, 60])
def test_test_pictures_that_are_in_the_training_set(quality: int | None) -> None:
    train, test = shapes(0, 20), torch.cat([shapes(100, 6), shapes(4, 2, quality)])
    [finding] = check_data([(normalized(train), torch.ones(20))], [(normalized(test), torch.ones(8))])
    assert (finding.level, finding.kind, finding.value, finding.n) == ("bad", "leak", 2, 28)
    assert "training sample 4 = test sample 6, training sample 5 = test sample 7" in finding.message


def test_duplicates_and_their_labels() -> None:
    pixels, own = normalized(shapes(0, 12)), torch.tensor([0, 1, 2, 3] * 3)
    pixels[7] = pixels[3]
    [finding] = check_data([(pixels, own)])
    assert (finding.level, finding.kind) == ("warn", "duplicate")
    assert "sample 3 = sample 7" in finding.message
    own[7] = 0
    [finding] = check_data([(pixels, own)])
    assert (finding.level, finding.kind) == ("bad", "label-conflict")
    assert "sample 3 (3) = sample 7 (0)" in finding.message


def test_pictures_with_the_same_hash_are_no_duplicates_unless_they_look_alike() -> None:
    halves = torch.cat([torch.full((32, 16), -0.4), torch.full((32, 16), 0.4)], dim=1)
    noise = images(8, side=32).unfold(2, 4, 4).unfold(3, 4, 4)
    noise = noise - noise.mean(dim=(4, 5), keepdim=True)  # no cell of the hash changes
    inside = noise.permute(0, 1, 2, 4, 3, 5).reshape(8, 3, 32, 32)
    assert check_data([(halves + inside, labels(8))]) == []
    found = check_data([(halves + 0.02 * inside, torch.zeros(8).long())])
    assert said(found) == [("warn", "duplicate")]
    assert found[0].value == 7


def test_labels_out_of_range() -> None:
    found = check_data([(images(), labels() + 1)], classes=4)
    assert said(found) == [("bad", "label-range")]
    assert "off by one" in found[0].message
    assert said(check_data([(images(), labels() - 1)])) == [("bad", "label-range")]
    assert said(check_data([(images(), labels() + 1)])) == [("warn", "label-range")]
    assert said(check_data([(images(), labels().float())], classes=4)) == [("bad", "label-range")]
    assert check_data([(images(), torch.randn(32))]) == []
    assert check_data([(images(), labels().masked_fill(labels() == 1, -100))], classes=4) == []
    assert said(check_data([(images(40), torch.zeros(40).long())], classes=2)) == [
        ("warn", "constant"),
        ("note", "label-range"),
    ]


def test_labels_that_look_like_indices_but_are_floating_point() -> None:
    [finding] = check_data([(images(), labels().float())])
    assert (finding.level, finding.kind) == ("note", "label-range")
    assert "look like class indices" in finding.message
    binary, amounts = (labels() % 2).float(), labels().float() + 0.5
    assert check_data([(images(), binary)]) == check_data([(images(), amounts)]) == []


def test_values_that_are_broken_or_constant() -> None:
    pixels = images()
    pixels[3, 0, 2, 2], pixels[5], pixels[9] = torch.nan, 0.5, -0.5
    found = check_data([(pixels, labels())])
    assert said(found) == [("bad", "nonfinite"), ("warn", "constant")]
    assert found[0].message.endswith("sample 3")
    assert found[1].message.endswith("sample 5, sample 9")


def test_a_brighter_test_set_is_a_shift_and_the_same_distribution_is_none() -> None:
    train = normalized(shapes(0, 40))
    found = check_data([(train, labels(40))], [(normalized(shapes(100, 40)) + 1.2, labels(40))])
    assert said(found) == [("warn", "shift")]
    assert found[0].value == pytest.approx(1.2, abs=0.6)


def test_a_training_set_that_is_not_shuffled() -> None:
    data = TensorDataset(*batch(24))
    held = [batch(8, seed=5)]
    assert said(check_data(DataLoader(data, 8), held)) == [("note", "constant")]
    assert check_data(DataLoader(data, 8, shuffle=True), held) == []
    assert check_data(DataLoader(data, 8)) == []


def test_random_states_are_left_as_they_were() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*batch(24)), 8, shuffle=True, generator=generator)
    before = generator.get_state(), torch.get_rng_state()
    check_data(loader, [batch(8, seed=5)])
    assert torch.equal(before[0], generator.get_state())
    assert torch.equal(before[1], torch.get_rng_state())


def test_loaders_of_mappings_need_to_be_told_what_is_what() -> None:
    items = [{"pixels": images(), "target": labels()}]
    with pytest.raises(InputError, match=r"a mapping with keys 'pixels', 'target'; expected .* pass batch="):
        check_data(items)
    assert check_data(items, batch=lambda item: (item["pixels"], item["target"])) == []
    with pytest.raises(InputError, match="callable batch= gives 3 values"):
        check_data(items, batch=lambda item: (1, 2, 3))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("loader", "options", "error", "says"),
    [
        ([], {}, InputError, "the loader yields nothing"),
        ([batch()], {"test": []}, InputError, "the test loader yields nothing"),
        ([images()], {}, InputError, "a Tensor without labels"),
        ([(images(),)], {}, InputError, "1 values; expected"),
        (images(), {}, InputError, "the loader is a Tensor; expected an iterable of batches"),
        (3, {}, InputError, "the loader is an int"),
        ([(images(), labels(4))], {}, ShapeError, "32 images and 4 labels"),
        ([batch()], {"classes": 0}, OptionError, "classes is 0; expected at least one"),
        ([batch()], {"classes": "abc"}, InputError, "classes is a str"),
    ],
)
def test_loaders_that_cannot_be_read(loader: Any, options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check_data(loader, **options)


def test_arrays_tokens_and_tables_get_no_verdict_about_pictures() -> None:
    assert check_data([(images().numpy(), labels().numpy())], classes=4) == []
    assert check_data([(torch.randint(0, 50, (32, 12)), labels())], classes=4) == []
    assert check_data([(100 * torch.rand(32, 5), labels())], classes=4) == []
    assert check_data([([[1.0, 2.0]] * 0 or torch.randn(32, 1, 6), [0, 1, 2, 3] * 8)], classes=4) == []
