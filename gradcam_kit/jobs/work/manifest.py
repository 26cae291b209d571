"""`run.json`: everything that determines the rows of a run, as plain values."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gradcam_kit._version import __version__
from gradcam_kit.jobs.request import RunRequest
from gradcam_kit.jobs.sources.index import Entry
from gradcam_kit.jobs.sources.plan import Plan
from gradcam_kit.jobs.storage.rows import method_name
from gradcam_kit.jobs.work.command import command_of
from gradcam_kit.jobs.work.explainer import Explainer
from gradcam_kit.jobs.work.loading import metric_settings
from gradcam_kit.jobs.work.methods import layers_of
from gradcam_kit.methods import BaseCAM
from gradcam_kit.models.checkpoints import weights_hash


def make_manifest(request: RunRequest, explainer: Explainer, plan: Plan) -> dict[str, Any]:
    """Return the values that must be equal in all parts of a run; `about` is only informative.

    The source is represented by the digest of its index, because it may have a different name the next time.
    """
    loaded = explainer.loaded
    return {
        "format": 2,
        "about": {
            "source": request.source,
            "root": _root(next(plan.entries())),
            "request": _asked(request, explainer),
            "command": command_of(request),
            "notes": list(loaded.notes),
        },
        "pictures": plan.pictures,
        "index_sha256": plan.digest,
        "shard_size": request.shard_size,
        "overlays": request.overlays,
        "thumbnails": request.thumbnails,
        "model": loaded.spec,
        "checkpoint": None if request.checkpoint is None else request.checkpoint.name,
        "weights": loaded.weights,
        "weights_sha256": weights_hash(loaded.model),
        "class_names": loaded.class_names,
        "transform": loaded.transform.describe(),
        "methods": {method_name(cam): _parameters(cam) for cam in explainer.cams},
        "layers": layers_of(explainer),
        **({"metrics": metric_settings(explainer, plan.entries(), explainer.targets)} if explainer.metrics else {}),
        "targets": request.targets,
        "scores": explainer.scores,
        "gradient_rule": request.gradient_rule,
        "dtype": request.dtype,
        "compile": request.compile,
        "versions": {
            "gradcam_kit": __version__,
            "python": platform.python_version(),
            **{library: version(library) for library in ("torch", "torchvision", "numpy", "pillow")},
        },
    }


def _asked(request: RunRequest, explainer: Explainer) -> dict[str, Any]:
    """Return the request that rebuilds model and methods; the model is None if it was not a specification."""
    return {
        "model": request.model if isinstance(request.model, str) else None,
        "checkpoint": None if request.checkpoint is None else str(Path(request.checkpoint).absolute()),
        "weights": request.weights,
        "image_size": request.image_size,
        "mean": request.mean,
        "std": request.std,
        "class_names": None if request.class_names is None else explainer.loaded.class_names,
        "methods": request.methods,
    }


def _root(entry: Entry) -> str:
    """Return the folder to which keys are relative."""
    return entry.path.rsplit("/", len(entry.folders) + 1)[0] or "/"


def _parameters(cam: BaseCAM) -> dict[str, Any]:
    """Return the settings of a method except `batch_size`, which does not change the map.

    `gradient_rule` is left out if it is "exact", for compatibility with earlier versions.
    """
    plain = {name: str(value) if isinstance(value, torch.dtype) else value for name, value in vars(cam).items()}
    return {
        name: value
        for name, value in plain.items()
        if name != "batch_size"
        and (name, value) != ("gradient_rule", "exact")
        and isinstance(value, str | int | float | None)
    }
