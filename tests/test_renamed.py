"""Former public names work for one release."""

import importlib

import pytest
from models import images, tiny

from gradcam_kit import compare
from gradcam_kit.jobs import EvaluateRequest
from gradcam_kit.renamed import former_arguments


@pytest.mark.parametrize(
    ("module", "former", "name"),
    [
        ("gradcam_kit.metrics", "Case", "MetricInput"),
        ("gradcam_kit.metrics", "Measured", "MetricResult"),
        ("gradcam_kit.metrics", "CONTROLS", "BASELINES"),
        ("gradcam_kit.types", "Rows", "Rescore"),
    ],
)
def test_a_former_name_warns_and_gives_the_same_object(module: str, former: str, name: str) -> None:
    home = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{former} is now called {name}"):
        assert getattr(home, former) is getattr(home, name)


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        importlib.import_module("gradcam_kit.metrics").Nothing  # noqa: B018


@former_arguments(former="name")
def asked(*, name: int = 0) -> int:
    return name


def test_a_former_keyword_warns_at_the_call_and_is_passed_on() -> None:
    with pytest.warns(DeprecationWarning, match="the argument 'former' of asked.. is now called 'name'"):
        assert asked(former=3) == 3
    assert asked(name=4) == 4
    with pytest.raises(TypeError, match=r"asked\(\) got 'former' and its new name 'name'; pass only 'name'"):
        asked(former=3, name=4)


def test_controls_are_baselines_now() -> None:
    with pytest.warns(DeprecationWarning, match="'controls' of compare.. is now called 'baselines'"):
        found = compare(tiny(), images(), "grad-cam", metrics="entropy", cost=False, controls=False)
    assert found.baselines == {}
    with pytest.warns(DeprecationWarning, match="Comparison.controls is now called baselines"):
        assert found.controls is found.baselines
    with pytest.warns(DeprecationWarning, match="'controls' of EvaluateRequest.. is now called 'baselines'"):
        request = EvaluateRequest("out", controls=False)
    assert request == EvaluateRequest("out", baselines=False)
