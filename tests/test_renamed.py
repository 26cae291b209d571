"""Former public names work for one release."""

import importlib

import pytest


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
