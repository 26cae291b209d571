"""Whether metrics rank methods alike: against scipy, and Krippendorff's alpha from its coincidences."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from gradcam_kit.errors import OptionError, ShapeError
from gradcam_kit.metrics import rank_agreement

rank_agreement_module = import_module("gradcam_kit.metrics.rank_agreement")  # hidden by the function of its name

SCORES = {name: torch.rand(5, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}


def alpha(given: np.ndarray) -> float:
    """From all pairs of ranks: within a method over images, and of any two."""
    n, methods = given.shape
    observed = [(given[i, m] - given[j, m]) ** 2 for m in range(methods) for i in range(n) for j in range(n) if i != j]
    flat = given.ravel()
    expected = [(a - b) ** 2 for i, a in enumerate(flat) for j, b in enumerate(flat) if i != j]
    return 1 - float(np.mean(observed) / np.mean(expected))


def test_the_table_is_its_definition() -> None:
    found = rank_agreement(SCORES, lower=["b"])
    signed = {name: -one if name == "b" else one for name, one in SCORES.items()}
    for i, one in enumerate(signed.values()):
        for j, other in enumerate(signed.values()):
            expected = np.mean([spearmanr(one[:, k], other[:, k]).statistic for k in range(4)])
            assert float(found.consistency[i, j]) == pytest.approx(expected, abs=1e-6)
        assert float(found.reliability[i]) == pytest.approx(alpha(np.stack([rankdata(row) for row in one.mT])))
    assert found.metrics == ("a", "b", "c")
    assert (found.counts == 4).all()


def test_images_that_agree() -> None:
    one = torch.arange(4.0)[:, None] + torch.zeros(4, 3)
    found = rank_agreement({"up": one, "down": one}, lower=["down"])
    assert found.reliability.tolist() == [1, 1]
    assert found.consistency.tolist() == [[1, -1], [-1, 1]]


def test_images_with_a_missing_number_are_left_out() -> None:
    scores = {name: one.clone() for name, one in SCORES.items()}
    scores["a"][2, 1] = torch.nan
    found = rank_agreement(scores)
    assert found.counts.tolist() == [[3, 3, 3], [3, 4, 4], [3, 4, 4]]
    kept = rank_agreement({name: one[:, [0, 2, 3]] for name, one in SCORES.items()})
    assert torch.equal(found.consistency[0], kept.consistency[0])
    assert torch.equal(found.reliability[0], kept.reliability[0])
    assert rank_agreement({name: one[:, :1] for name, one in SCORES.items()}).reliability.isnan().all()


def test_images_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {name: torch.rand(5, 23, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}
    scores["a"][2, 1] = torch.nan
    expected = rank_agreement(scores, lower=["b"])
    monkeypatch.setattr(rank_agreement_module, "_AT_ONCE", 4)
    found = rank_agreement(scores, lower=["b"])
    torch.testing.assert_close(found.consistency, expected.consistency)
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.reliability, expected.reliability)


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match="number of methods: 2, of metrics: 1; expected at least three"):
        rank_agreement({"a": SCORES["a"][:2]})
    with pytest.raises(OptionError, match="number of methods: 0"):
        rank_agreement({})
    with pytest.raises(ShapeError, match="metrics have scores of shapes"):
        rank_agreement({"a": SCORES["a"], "b": SCORES["b"][:4]})
