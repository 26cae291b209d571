"""Shift and MMD of two data sets against NumPy, a planted shift, and twins without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from planted import network, said
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from traces import unchanged

from gradcam_kit.diagnostics import compare_data, mmd
from gradcam_kit.errors import InputError, OptionError, ShapeError, UnknownNameError
from gradcam_kit.significance import holm


def pictures(n: int, seed: int, brightness: float = 0.0) -> Tensor:
    """Pictures with a color of their own each, and noise."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randn(n, 3, 1, 1, generator=generator)
    return 0.5 * colors + torch.randn(n, 3, 12, 12, generator=generator) + brightness


def labeled(n: int, seed: int, brightness: float = 0.0) -> Iterator[tuple[Tensor, Tensor]]:
    for images in pictures(n, seed, brightness).split(16):
        yield images, torch.zeros(len(images))


def test_a_brighter_test_set_is_found_in_every_layer() -> None:
    found = compare_data(network(), labeled(48, 0), labeled(32, 1, brightness=1.0))
    assert said(found.findings) == [("warn", "shift")]
    assert found.findings[0].layer == found.layers[0].name
    assert {row.name for row in found.layers if row.p_adjusted < 0.05} >= {"0", "1", "2"}
    assert (found.n_train, found.n_test) == (48, 32)
    assert found["0"].shift > 1
    assert [row.p_adjusted for row in found.layers] == sorted(row.p_adjusted for row in found.layers)
    assert found.plot().axes
    assert list(found.to_pandas()["name"]) == [row.name for row in found.layers]
    assert "WARN shift" in str(found)
    assert "<svg" in found._repr_html_()


def test_equal_distributions_give_at_most_one_false_alarm_in_twenty() -> None:
    model = network()
    alarms = [
        bool(compare_data(model, pictures(32, 2 * seed), pictures(32, 2 * seed + 1), permutations=300).findings)
        for seed in range(20)
    ]
    assert sum(alarms) <= 1


def test_the_numbers_are_those_of_the_formulas() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True)).train()
    a, b = pictures(20, 0), pictures(12, 1, brightness=0.3)
    found = compare_data(model, a.split(7), [b[:5], b[5:]], permutations=200)
    before = model[0](a).mean((2, 3)).detach().double(), model[0](b).mean((2, 3)).detach().double()
    mean_a, mean_b = (one.numpy().mean(0) for one in before)
    pooled = np.sqrt((before[0].numpy().var(0) + before[1].numpy().var(0)) / 2)
    shift = np.abs(mean_b - mean_a) / pooled
    row = found["0"]
    assert row.shift == pytest.approx(shift.max(), rel=1e-4)
    assert row.unit == shift.argmax()
    assert row.shifted == pytest.approx((shift > 0.5).mean())
    test = mmd(before[0], before[1], permutations=200)
    assert row.mmd == pytest.approx(test.value, abs=1e-6)
    assert row.p == pytest.approx(test.p, abs=0.02)
    ps = {one.name: one.p for one in found.layers}
    assert [found[name].p_adjusted for name in ps] == pytest.approx(holm(list(ps.values())))


def test_both_sets_are_read_in_eval_mode_so_batch_norm_and_dropout_shift_nothing() -> None:
    model, images = network(dropout=0.9).train(), pictures(24, 0)
    found = compare_data(model, images, images.clone())
    assert all(row.shift == 0 for row in found.layers)
    assert found.findings == ()


def test_the_draw_is_even_and_all_samples_count_for_the_shift() -> None:
    sorted_set = torch.arange(400.0)[:, None].expand(-1, 3)
    shuffled = sorted_set[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    found = compare_data(nn.Identity(), sorted_set, shuffled, samples=64)
    assert found.n_train == found.n_test == 400
    assert found.layers[0].shift == pytest.approx(0, abs=1e-6)
    assert found.findings == ()
    again = compare_data(nn.Identity(), sorted_set, shuffled, samples=64)
    assert again.layers == found.layers


def test_many_layers_get_more_permutations() -> None:
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(16)])
    images = torch.randn(8, 3)
    assert compare_data(model, images, images).permutations == 640
    few = compare_data(model, images, images, permutations=100)
    assert "no shift can be found; use permutations=640" in few.notes[0]
    assert few.permutations == 100


def test_nothing_is_changed_not_even_the_random_states_of_shuffled_loaders() -> None:
    model, images = network().train(), pictures(16, 0)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(images), batch_size=8, shuffle=True, generator=generator)
    other = DataLoader(TensorDataset(images, torch.zeros(16)), batch_size=5, shuffle=True)
    before = generator.get_state()
    with unchanged(model, images):
        compare_data(model, loader, other, layers=["0", "5"])
        with pytest.raises(RuntimeError):
            compare_data(model, loader, torch.zeros(8, 2, 4, 4))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("train", "test", "options", "error", "message"),
    [
        ([], torch.ones(8, 4), {}, InputError, "the train loader yields nothing"),
        (torch.ones(8, 4), 3, {}, InputError, "the test loader is an int"),
        (torch.ones(8, 4), [{"x": 1}], {}, InputError, "the test loader gives a mapping with keys 'x'"),
        (torch.ones(8, 4), torch.ones(3, 4), {}, ShapeError, "the test loader gives 3 samples; .* at least 4"),
        (torch.ones(8, 4), torch.ones(8, 5), {}, ShapeError, "layer '0' has 4 units for the train loader and 5"),
        ([torch.ones(4, 4), torch.ones(4, 5)], torch.ones(8, 4), {}, ShapeError, "4 units for one batch .* 5 for an"),
        (torch.ones(8, 4), torch.ones(8, 4), {"samples": 2}, OptionError, "samples is 2"),
        (torch.ones(8, 4), torch.ones(8, 4), {"permutations": 0}, OptionError, "permutations is 0"),
    ],
)
def test_bad_input_is_one_line(train: Any, test: Any, options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        compare_data(nn.Sequential(nn.Identity()), train, test, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="no layer '1' was compared"):
        compare_data(nn.Sequential(nn.Identity()), torch.ones(8, 4), torch.ones(9, 4))["1"]
