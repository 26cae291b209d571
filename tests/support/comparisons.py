"""On which models, layers and options methods are compared with their oracles, and on which they all run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import reference as ref
from cases import LARGE, MINI, PERTURBED, SMALL, VIT, Case
from explicit_vit import attention_rollout, legrad, vit_recipro_cam
from networks import blocks, vit
from oracles import (
    Oracle,
    ablation_cam,
    balanced_cam,
    expected_grad_cam,
    group_cam,
    integrated_grad_cam,
    is_cam,
    random_cam,
    recipro_cam,
    rise,
    score_cam,
    sess,
    smooth_grad_cam_plus_plus,
    ss_cam,
)
from torch import nn

from gradcam_kit import METHODS
from gradcam_kit.types import Evidence, LayerChoice


def _options(name: str, oracle: Callable[..., Any], *options: dict[str, Any]) -> dict[str, Any]:
    return {f"{name} {own}": (name, own, partial(oracle, **own)) for own in options}


def _formula(formula: Callable[..., Any]) -> Callable[..., Any]:
    return lambda sample, **options: formula(sample.activations, sample.gradients, **options)


VARIANTS: dict[str, tuple[str, dict[str, Any], Oracle]] = {
    **_options("grad-cam++", _formula(ref.grad_cam_plus_plus), {"variant": "authors"}),
    **_options("eigen-grad-cam", _formula(ref.eigen_grad_cam), {"center": True}),
    **_options(
        "seg-xres-cam",
        lambda sample, pool_window, **pool: ref.seg_xres_cam(sample.activations, sample.gradients, pool_window, **pool),
        {"pool_window": 1},
        {"pool_window": 3},
        {"pool_window": 5, "pool": "max"},
        {"pool_window": 100, "pool": "max"},
    ),
    **_options("eigen-cam", lambda sample, **own: ref.eigen_cam(sample.activations, **own), {"center": True}),
    **_options("fem", lambda sample, **own: ref.fem(sample.activations, **own), {"sigmas": 1.0}, {"sigmas": 0.3}),
    **_options(
        "kpca-cam",
        lambda sample, **own: ref.kpca_cam(sample.activations, **own),
        {"kernel": "linear"},
        {"kernel": "rbf"},
        {"kernel": "rbf", "gamma": 2.0},
        {"gamma": 0.01},
    ),
    **_options("balanced-cam", balanced_cam, {"reference": "zero"}),
    **_options("random-cam", random_cam, {"seed": 5}),
    **_options("smooth-grad-cam++", smooth_grad_cam_plus_plus, {"samples": 2, "std": 1.0, "seed": 3}),
    **_options("expected-grad-cam", expected_grad_cam, {"samples": 1}, {"samples": 3, "std": 1.0, "seed": 4}),
    **_options("integrated-grad-cam", integrated_grad_cam, {"steps": 1}, {"steps": 3}),
    **_options(
        "score-cam",
        score_cam,
        {"weighting": "probability"},
        {"weighting": "relu"},
        {"channels": 3},
        {"channels": 2, "ranking": "gradient"},
        {"channels": 2, "ranking": "first-order"},
        {"channels": 4, "weighting": "relu"},
    ),
    **_options("ablation-cam", ablation_cam, {"channels": 1}, {"channels": 4}),
    **_options("ss-cam", ss_cam, {"samples": 3, "std": 0.5, "seed": 2}, {"samples": 2, "weighting": "relu"}),
    **_options("is-cam", is_cam, {"samples": 3}, {"ladder": "printed"}, {"samples": 4, "ladder": "cumulative"}),
    **_options("group-cam", group_cam, {"groups": 1}, {"groups": 3}, {"groups": 3, "seed": 1}),
    **_options("sess", sess, {"scales": 3}, {"scales": 4, "growth": 0.6, "pool": "max"}),
    **_options(
        "attention-rollout",
        attention_rollout,
        {"heads": "max"},
        {"heads": "min"},
        {"discard": 0.4},
        {"heads": "max", "discard": 0.9},
    ),
    **_options("legrad", legrad, {"blocks": 1}, {"blocks": 2}),
    **_options("vit-recipro-cam", vit_recipro_cam, {"window": 1}),
    **_options("odam", _formula(ref.odam), {"sigma": 0.0}, {"sigma": 0.4}, {"sigma": 2.0}),
    **_options("rise", rise, {"masks": 7}, {"masks": 20, "cells": 3, "visible": 0.2, "seed": 5}),
    **_options("recipro-cam", recipro_cam, {"window": 3}, {"window": 3, "mode": "spread"}),
}
"""Options of methods -> name, options and oracle."""

_DEEP = [case for case in LARGE if case.name.endswith(" last")]
_BEFORE = [case for case in LARGE if case.name.endswith(" earlier")]
OWN_CASES = {
    "shapley-cam": MINI + VIT,  # its transcription holds the whole matrix of second derivatives
    "kpca-cam": MINI + VIT,  # its transcription loops over pairs of positions
    "seg-xres-cam": MINI + VIT,  # its transcription looks for the members of each block
    "rise": MINI,  # it sees no layer, and its transcription makes masks one by one
    "ss-cam": MINI + VIT,  # many forward passes
    "is-cam": MINI + VIT,
    "sess": MINI + VIT[:1],
    "recipro-cam": MINI + VIT + _DEEP,  # its transcription loops over pairs of positions
    "fem": SMALL + VIT[:1] + _BEFORE,  # of few positions none is two standard deviations above the mean
    "guided-backprop": SMALL,  # its transcription needs modules that run one after the other
    "guided-grad-cam": SMALL,
    "full-grad": SMALL + PERTURBED,  # biases of convolutions, batch norms and linear layers
    **dict.fromkeys(("winsor-cam", "refine-cam", "finer-cam"), SMALL + VIT),  # formulas of others
    "grad-eclip": VIT[:2],  # for class tokens
    "vit-recipro-cam": VIT[:3],  # for the input of a block
}
FEWER = {
    "rise": {"masks": 20},
    "sess": {"scales": 2},
    "ss-cam": {"samples": 2},
    "is-cam": {"samples": 2},
    "integrated-grad-cam": {"steps": 3},
    "expected-grad-cam": {"samples": 2},
}
"""Options that make expensive methods cheap, for tests of what does not depend on them."""
LOGITS_ONLY = {"guided-backprop", "guided-grad-cam", "group-cam", "sess"}
"""Methods whose transcription explains a class alone."""


def is_for_transformers(name: str) -> bool:
    return METHODS[name].layer_choice in (LayerChoice.ATTENTION, LayerChoice.BLOCK)


def cases_of(name: str) -> list[Case]:
    """The cases on which a method is compared with its oracle."""
    if name in OWN_CASES:
        return OWN_CASES[name]
    if is_for_transformers(name):
        return VIT
    runs_often = METHODS[name].needs & (Evidence.RESCORE | Evidence.REPLAY | Evidence.PROBE)
    return SMALL + VIT + (PERTURBED if runs_often else LARGE)


def home(name: str) -> nn.Module:
    """A model on which a method can run."""
    return vit() if is_for_transformers(name) else blocks()


def layers_of(name: str) -> tuple[str, ...]:
    """Layers of `home(name)` that make a difference and suit the method."""
    if is_for_transformers(name):
        return ("blocks.1.norm1",)
    if METHODS[name].layer_choice is LayerChoice.INPUT:
        return ("block1",)
    return ("block2",) if name == "cam" else ("block1", "block2")


def unfit(name: str, case: Case) -> str:
    """Why a method gives an error on a case; empty where it does not."""
    if name == "cam" and not case.head:
        return "CAM needs mean pooling and one linear layer"
    if name == "einsum-cam" and not case.head and not case.own_weight:
        return "all its channels get the same weight|has no weight with one entry"
    return ""
