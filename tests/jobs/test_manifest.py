"""Two manifests: what differs is named, all of it, and once."""

from __future__ import annotations

from typing import Any

import pytest

from gradcam_kit.errors import OptionError
from gradcam_kit.jobs.storage.manifest import check_same

MANIFEST: dict[str, Any] = {
    "about": {"source": "pictures"},
    "model": "demo",
    "methods": {"grad-cam": {"normalize": "minmax"}},
    "transform": {"mean": [0.5], "std": [0.5]},
    "scores": "softmax",
}


def refusal(**changes: Any) -> str:
    with pytest.raises(OptionError) as caught:
        check_same(MANIFEST, {**MANIFEST, **changes}, "out")
    return str(caught.value)


def test_every_field_that_differs_is_named() -> None:
    assert refusal(model="shop:net", transform={"mean": (0.1,), "std": (0.2,)}, scores="raw") == (
        '\'out\' holds a run with different model: "demo" before, "shop:net" now; transform.mean: [0.5] before, [0.1] '
        'now; transform.std: [0.5] before, [0.2] now; scores: "softmax" before, "raw" now; choose another folder, use '
        "the same settings, or replace it with --overwrite"
    )


def test_of_objects_with_other_keys_the_keys_are_named_and_what_both_have() -> None:
    settings = {"grad-cam": {"normalize": "max"}, "layer-cam": {"normalize": "max"}}
    assert refusal(methods=settings).startswith(
        '\'out\' holds a run with different methods: "grad-cam" before, "grad-cam, layer-cam" now; '
        'methods.grad-cam.normalize: "minmax" before, "max" now; choose'
    )


def test_what_only_informs_and_tuples_are_no_difference() -> None:
    check_same(MANIFEST, {**MANIFEST, "about": {}, "transform": {"mean": (0.5,), "std": (0.5,)}}, "out")
    check_same({key: value for key, value in MANIFEST.items() if key != "scores"}, MANIFEST, "out")
