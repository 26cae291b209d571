"""Random numbers that belong to an image."""

from __future__ import annotations

import torch

from gradcam_kit.metrics.draws import normal, uniform

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
