"""The example in the docstring of every method runs, and shows what the docstring says that it shows."""

from __future__ import annotations

import doctest
import inspect

import pytest
import torch

from gradcam_kit import methods
from gradcam_kit.methods.base import METHODS, BaseCAM

CLASSES = [
    one
    for one in vars(methods).values()
    if inspect.isclass(one) and one is not BaseCAM and not one.__name__.endswith("Explanation")  # a base class, results
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_example_runs(cls: type) -> None:
    torch.manual_seed(0)
    (example,) = doctest.DocTestFinder(recurse=False).find(cls, cls.__name__, globs={})
    assert len(example.examples) > 2, "an example makes a model, explains images with it, and shows the result"
    found = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE).run(example)
    assert not found.failed


def test_every_named_method_has_an_example() -> None:
    assert {cls for cls in METHODS.values() if cls.__module__.startswith("gradcam_kit.")} <= set(CLASSES)


@pytest.mark.parametrize("cls", [one for one in CLASSES if one.__doc__], ids=lambda cls: cls.__name__)
def test_options_of_its_own_are_under_args(cls: type) -> None:
    own = [name for name in vars(cls).get("__annotations__", {}) if name in inspect.signature(cls).parameters]
    documented = inspect.getdoc(cls) or ""
    assert "Example:" in documented
    assert all(f"\n    {name}: " in documented for name in own)
