"""Findings about a folder and a model together: unknown classes, implausible labels, dim pictures."""

from __future__ import annotations

from collections.abc import Sequence

from gradcam_kit.diagnostics.checks.data import names_in_words
from gradcam_kit.diagnostics.findings import Finding
from gradcam_kit.diagnostics.maths.statistics import binomial_error
from gradcam_kit.jobs.work.examined import Examined, Judged
from gradcam_kit.jobs.work.explainer import Explainer

_ENOUGH, _RIGHT = 32, 0.75  # minimum number of judged pictures, and minimum accuracy, for the model to question labels
_SURE, _DENIED, _SUSPECTS = 0.9, 0.02, 0.1


def dim_findings(seen: Examined) -> list[Finding]:
    """Report pictures that are nearly empty."""
    if not seen.dim:
        return []
    return [
        Finding(
            "warn",
            "normalization",
            "",
            f"Pictures whose values span fewer than 8 of 256 gray levels ({len(seen.dim)}): {names_in_words(seen.dim)}",
            float(len(seen.dim)),
            0.0,
            len(seen.split),
            "They were probably saved from values in [0, 1] without multiplying by 255; save them again",
            "convention: 8 levels",
        )
    ]


def unknown_findings(seen: Examined, explainer: Explainer) -> list[Finding]:
    """Report labels that are not classes of the model."""
    if not seen.unknown or not explainer.labels.names:
        return []
    count, names = sum(seen.unknown.values()), [f"'{name}'" for name in seen.unknown]
    some = names_in_words([f"'{name}'" for name in explainer.labels.names])
    return [
        Finding(
            "warn",
            "unknown-class",
            "",
            f"No class of the model is called {names_in_words(names)}; pictures without a usable label: {count}",
            float(len(names)),
            0.0,
            len(seen.split),
            f"Rename these labels to classes of the model ({some}), or give class names with --class-names",
            "definition",
        )
    ]


def disagreements(judged: Sequence[Judged], outputs: int, explainer: Explainer) -> list[Finding]:
    """Report that a trained model is no better than chance, or else which labels it confidently contradicts."""
    if not judged:
        return []
    right = sum(one.label == one.predicted for one in judged) / len(judged)
    if len(judged) >= _ENOUGH and right <= 1 / max(2, outputs):
        return [
            Finding(
                "warn",
                "labels-disagree",
                "",
                f"The model predicts {right:.1%} of {len(judged)} pictures correctly (+-"
                f"{binomial_error(right, len(judged)):.1%}); chance is {1 / outputs:.1%}",
                right,
                1 / outputs,
                len(judged),
                "The classes are probably in a different order than in training, or the pictures are "
                "preprocessed differently (channels, size, normalization)",
                "chance: 1 / classes",
            )
        ]
    suspects = [one for one in judged if one.of_label < _DENIED and one.of_predicted > _SURE]
    if right < _RIGHT or not suspects or len(suspects) > max(1, _SUSPECTS * len(judged)):
        return []
    names = explainer.labels.names

    def called(index: int) -> str:
        return names[index] if names else f"class {index}"

    shown = [f"{one.name} (label {called(one.label)}, model {called(one.predicted)})" for one in suspects]
    return [
        Finding(
            "warn",
            "labels-disagree",
            "",
            f"The model confidently contradicts the labels of {len(suspects)} of {len(judged)} pictures: "
            f"{names_in_words(shown)}",
            float(len(suspects)),
            0.0,
            len(judged),
            "Inspect each picture: either the label is wrong, or the model is confidently wrong",
            f"convention: below {_DENIED:.0%} for the label, above {_SURE:.0%} for another class",
        )
    ]
