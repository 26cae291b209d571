"""Projections and silhouettes against NumPy and scikit-learn."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from traces import settings

from gradcam_kit.diagnostics import project
from gradcam_kit.diagnostics.maths.clusters import silhouettes
from gradcam_kit.errors import InputError, MissingExtraError, NonFiniteError, OptionError, ShapeError


def clusters(n: int = 20, k: int = 6, distance: float = 6.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3 * n) % 3
    return torch.randn(3 * n, k, generator=generator) + distance * torch.eye(3, k)[labels], labels


def test_silhouettes_that_can_be_checked_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [4.0], [9.0]])
    # 0: a = 1, b = 4; 1: a = 1, b = 3; 4: a = 5 is not there for a group of one.
    assert silhouettes(points[:3], torch.tensor([0, 0, 1])).tolist() == pytest.approx([0.75, 2 / 3, 0])
    assert silhouettes(points, torch.tensor([7, 7, 3, 3])).tolist() == pytest.approx(
        [5.5 / 6.5, 4.5 / 5.5, -1.5 / 5, 3.5 / 8.5]
    )
    assert silhouettes(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])).tolist() == [0] * 4


def test_silhouettes_equal_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    monkeypatch.setattr("gradcam_kit.diagnostics.maths.clusters._AT_ONCE", 7)
    points, labels = clusters(distance=1.0)
    labels = labels.clone()
    labels[0] = 9  # alone
    expected = metrics.silhouette_samples(points.numpy(), labels.numpy())
    np.testing.assert_allclose(silhouettes(points, labels).numpy(), expected, atol=1e-6)
    assert project(points, labels).silhouette == pytest.approx(metrics.silhouette_score(points.numpy(), labels.numpy()))


def test_principal_components_are_those_of_the_covariance() -> None:
    points, labels = clusters()
    found = project(points, labels, components=3)
    values, vectors = np.linalg.eigh(np.cov(points.double().numpy().T))
    expected = (points.double().numpy() - points.double().numpy().mean(0)) @ vectors[:, ::-1][:, :3]
    np.testing.assert_allclose(np.abs(found.points.numpy()), np.abs(expected), atol=1e-9)
    assert found.explained == pytest.approx(values[::-1][:3] / values.sum())
    assert torch.equal(project(points.numpy(), labels.tolist(), components=3).points, found.points)
    assert found.silhouette is not None
    assert found.silhouette > 0.4
    assert list(found.silhouette_of) == ["0", "1", "2"]


def test_neighborhoods_stay_together_and_nothing_is_changed() -> None:
    pytest.importorskip("sklearn")
    points, labels = clusters(12)
    before = settings()
    found = project(points, labels, "tsne", class_names=["cat", "dog", "cup"])
    assert found.points.shape == (36, 2)
    assert found.explained is None
    assert float(silhouettes(found.points, labels).mean()) > 0.5
    assert torch.equal(found.points, project(points, labels, "tsne").points)
    after = settings()
    assert torch.equal(before["random state"], after["random state"])
    assert torch.equal(before["random state of NumPy"], after["random state of NumPy"])
    assert list(found.names.values()) == ["cat", "dog", "cup"]


def test_it_shows_itself_with_and_without_labels() -> None:
    points, labels = clusters()
    words = [("cat", "dog", "cup")[label] for label in labels.tolist()]
    for given in (words, labels, None):
        found = project(points, given)
        assert found.plot().axes
        assert "<svg" in found._repr_html_()
    assert "silhouette" in str(project(points, words))
    assert project(points).silhouette is None
    assert project(points, [1] * 60).silhouette is None
    assert project(torch.ones(5, 3)).explained == (0.0, 0.0)


def test_a_missing_package_is_one_line_and_pca_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    points, labels = clusters()
    with pytest.raises(MissingExtraError, match=r"pip install -e \"\.\[diagnostics\]\""):
        project(points, labels, "tsne")
    assert project(points, labels).points.shape == (60, 2)


@pytest.mark.parametrize(
    ("embeddings", "labels", "options", "error", "message"),
    [
        (torch.zeros(4, 3, 2), None, {}, ShapeError, r"shape \(4, 3, 2\); expected \(n, k\).*mean\(\(2, 3\)\)"),
        (torch.zeros(2, 3), None, {}, ShapeError, "at least 3 samples"),
        (torch.zeros(4, 3), [0, 1], {}, ShapeError, "2 labels for 4 embeddings"),
        (torch.zeros(4, 3), torch.eye(4), {}, ShapeError, r"labels.argmax\(1\)"),
        (torch.zeros(4, 3), "abcd", {}, InputError, "the labels are a str"),
        (torch.full((4, 3), torch.nan), None, {}, NonFiniteError, "NaN or infinite values occur in 4 of 4 embeddings"),
        ([torch.zeros(3)], None, {}, InputError, "a list of tensors; join them"),
        ({"a": 1}, None, {}, InputError, "the embeddings are a dict"),
        (torch.zeros(4, 3), None, {"method": "umap"}, OptionError, "method is 'umap'; expected 'pca', 'tsne'"),
        (torch.zeros(4, 3), None, {"components": 4}, OptionError, "at most 3 with 'pca'"),
        (torch.zeros(4, 3), None, {"perplexity": 4}, OptionError, "less than the number of samples, 4"),
    ],
)
def test_bad_input_is_one_line(embeddings: Any, labels: Any, options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        project(embeddings, labels, **options)
    assert "\n" not in str(caught.value)
