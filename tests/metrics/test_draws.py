"""Random numbers that belong to an image."""

from __future__ import annotations

import pytest
import torch
from models import images
from waits import device, on_device, on_host

from gradcam_kit.draws import normal, uniform
from gradcam_kit.metrics.draws import identities_of

MANY = torch.arange(64)


def test_they_do_not_depend_on_the_batch_or_on_how_many_are_drawn() -> None:
    whole = uniform((40,), MANY, 3)
    picked = torch.tensor([9, 3, 60])
    assert torch.equal(uniform((40,), picked, 3), whole[picked])
    assert torch.equal(uniform((4, 10), MANY, 3), whole.reshape(64, 4, 10))
    assert torch.equal(uniform((17,), MANY, 3), whole[:, :17])
    assert normal((5,), MANY, 3).shape == (64, 5)


def test_seed_identity_and_stream_all_count() -> None:
    first = uniform((1000,), torch.tensor([5]), 3)
    for other in (
        uniform((1000,), torch.tensor([5]), 4),
        uniform((1000,), torch.tensor([5]), -3),
        uniform((1000,), torch.tensor([6]), 3),
        uniform((1000,), torch.tensor([5 + 2**32]), 3),
        uniform((1000,), torch.tensor([5]), 3, 1),
    ):
        assert abs(float(torch.corrcoef(torch.cat([first, other]))[0, 1])) < 0.1
    streams = uniform((8,), torch.tensor([5, 5]), 3, torch.tensor([0, 1]))
    assert torch.equal(streams[1:], uniform((8,), torch.tensor([5]), 3, 1))


def test_they_are_distributed_as_they_say() -> None:
    flat = uniform((4000,), MANY, 0)
    assert 0 < flat.min() < 1e-4
    assert 1 - 1e-4 < flat.max() < 1
    assert abs(float(flat.mean()) - 0.5) < 0.003
    assert torch.histc(flat, 64, 0, 1).sub(4000).abs().max() < 6 * 4000**0.5
    bell = normal((4001,), MANY, 0)
    assert abs(float(bell.mean())) < 0.01
    assert abs(float(bell.std()) - 1) < 0.01
    assert abs(float((bell**4).mean()) - 3) < 0.1
    for numbers in (flat, bell):  # neither neighbors nor images are correlated
        assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < 0.08
        assert (
            abs(float(torch.corrcoef(torch.stack([numbers[:, 1:].flatten(), numbers[:, :-1].flatten()]))[0, 1])) < 0.01
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_say_who_they_are(dtype) -> None:
    x = images(5, size=(9, 8)).to(dtype)
    own = identities_of(None, x)
    assert len(set(own.tolist())) == 5
    picked = torch.tensor([3, 1])
    assert torch.equal(identities_of(None, x[picked]), own[picked])
    assert torch.equal(identities_of(None, x.contiguous(memory_format=torch.channels_last)), own)
    with device() as found:
        there = identities_of(None, on_device(x))
    assert torch.equal(on_host(there), own)
    assert not found.waits


def test_images_that_differ_a_little_are_others() -> None:
    x = images(1, size=(9, 8))
    last, swapped = x.clone(), x.clone()
    last.view(torch.int32)[0, 0, 0, 0] ^= 1
    swapped[0, 0, 0, 0], swapped[0, 0, 0, 1] = x[0, 0, 0, 1], x[0, 0, 0, 0]
    others = [identities_of(None, other) for other in (x, last, swapped, x.flip(3), x.mT.reshape(x.shape))]
    assert len({int(own) for own in others}) == 5
    draws = uniform((1000,), torch.cat(others), 0)
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.15


@pytest.mark.parametrize("precision", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 256])
def test_images_of_few_levels_are_told_apart(precision: torch.dtype, levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, levels, (1000, 3, 8, 8), generator=generator).to(precision) / (levels - 1)
    assert len(identities_of(None, images).unique()) == 1000
