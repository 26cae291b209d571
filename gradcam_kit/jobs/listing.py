"""List the layers of a model, and the methods and metrics of this package."""

from __future__ import annotations

from gradcam_kit.capture import ClassLogit, layer_candidates, read_inputs
from gradcam_kit.demo import sample_pictures
from gradcam_kit.jobs.request import ModelRequest
from gradcam_kit.jobs.work.loading import load_explainer
from gradcam_kit.methods import METHODS
from gradcam_kit.methods.recommended import recommended
from gradcam_kit.metrics import METRICS
from gradcam_kit.types import Evidence, LayerCandidate


def candidate_layers(request: ModelRequest) -> list[LayerCandidate]:
    """Return the model's layers with positions, found by running it on a bundled picture, and mark the default layer.

    Raises:
        GradCamKitError: the request is invalid.
    """
    explainer = load_explainer(request)
    images = explainer.loaded.transform(sample_pictures()[0].picture)[None].to(explainer.device)
    return layer_candidates(explainer.model, read_inputs(images, {}), None, ClassLogit)


def described_methods() -> list[tuple[str, str, str, str, str]]:
    """Return the name, use, needs, cost and paper of every method, in the recommended order."""
    return [
        (name, use, ", ".join(["activations", *_words(METHODS[name].needs)]), METHODS[name].cost, METHODS[name].paper)
        for name, use in recommended().items()
    ]


def described_metrics() -> list[tuple[str, str, str, str, str]]:
    """Return the name, better direction, needs, cost and paper of every metric."""
    return [
        (name, metric.better, ", ".join(dict.fromkeys(_NEEDS[one] for one in metric.needs)), metric.cost, metric.paper)
        for name, metric in sorted(METRICS.items())
    ]


_NEEDS = {
    "masks": "masks",
    "rescore": "the model",
    "predicts": "the model",
    "explain": "the method",
    "represent": "a layer",
}


def _words(needs: Evidence) -> list[str]:
    return [str(one.name).lower().replace("_", " ") for one in Evidence if one.value and one in needs]
