"""Every method against the slow transcription of its paper, in front of the last stage, on float64 models."""

from __future__ import annotations

import pytest
import reference as ref
import torch
from cases import LARGE, PERTURBED, SMALL, VIT, assert_same, logit, probability, stack
from comparisons import LOGITS_ONLY, VARIANTS, cases_of, unfit
from explicit_vit import ExplicitViT
from oracles import EXCEPTIONS, ORACLES, finer
from representatives import representatives
from torch.testing import assert_close

from gradcam_kit import METHODS
from gradcam_kit.errors import GradCamKitError, OptionError
from gradcam_kit.options import one_of
from gradcam_kit.targets import ClassLogit, ClassProbability, LogitDifference

TOO_LONG = ("rise",)  # its transcription would take minutes; with fewer masks it is among the VARIANTS
ALL = [(name, case) for name in METHODS if name in ORACLES and name not in TOO_LONG for case in cases_of(name)]
FIT = [(name, case) for name, case in ALL if not unfit(name, case)]
# A formula sees numbers, not an architecture: of each kind one method is asked on deep networks and all transformers.
KINDS = {*representatives(name for name, _ in FIT), "einsum-cam"}  # whose formula has weights of the layer in it
ARCHITECTURES = {case.name for case in (*LARGE, *PERTURBED, *VIT[1:3])}
FEW = ("tiny last", "tiny signed last", "blocks last", "blocks earlier", "mini last", "mini signed")

OBJECTIVES = {
    "probability": (lambda case: ClassProbability(case.targets), probability),
    "difference": (
        lambda case: LogitDifference(case.targets, against=4),
        lambda logits, target: logits[target] - logits[4],
    ),
    "callable": (lambda case: lambda logits: logits[:, 1] * logits[:, 2], lambda logits, _: logits[1] * logits[2]),
}


CANCELING = {("group-cam", "mobilenet middle"): 1e-5}
"""Differences of probabilities that agree in their first ten digits: the rest of float64 depends on the processor."""


def named(pairs, rare=lambda name, case: False):
    """Parametrize by name and case; those that are rare run with `-m exhaustive`."""
    cases = [
        pytest.param(name, case, id=f"{name}-{case.name}", marks=pytest.mark.exhaustive if rare(name, case) else ())
        for name, case in pairs
    ]
    return pytest.mark.parametrize(("name", "case"), cases)


def explain(name, case, targets=None, **options):
    """The signed map of the only layer, and all else."""
    explanation = METHODS[name](case.model, case.layer, **options).explain(
        case.images, case.targets if targets is None else targets
    )
    (saliency,) = explanation.saliency.values()
    return saliency, explanation


def test_every_method_has_an_oracle():
    assert set(METHODS) == {*ORACLES, *EXCEPTIONS}
    assert not set(ORACLES) & set(EXCEPTIONS)


@named(FIT, rare=lambda name, case: case.name in ARCHITECTURES and name not in KINDS)
def test_saliency_equals_the_paper(name, case):
    saliency, explanation = explain(name, case)
    assert saliency.dtype == torch.float64
    assert_same(saliency, stack(case, ORACLES[name]), CANCELING.get((name, case.name), 1e-9))
    assert torch.equal(explanation.targets, case.targets)
    if METHODS[name].target_type is ClassLogit:
        assert_same(explanation.scores, stack(case, lambda sample: sample.score))


@pytest.mark.parametrize("objective", OBJECTIVES)
@named(
    [(name, case) for name, case in FIT if case.name in FEW and name not in LOGITS_ONLY],
    rare=lambda name, case: case.name not in (FEW[0], FEW[-2]) and name not in KINDS,
)
def test_other_targets_equal_the_paper(name, case, objective):
    make_target, score = OBJECTIVES[objective]
    saliency, _ = explain(name, case, make_target(case))
    expected = stack(case, ORACLES[name], score)
    if saliency.ndim < expected.ndim:  # a plain callable has one score per sample
        expected = expected[:, 0]
    assert_same(saliency, expected)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("variant", VARIANTS)
def test_options_equal_the_transcription(variant, place):
    name, options, oracle = VARIANTS[variant]
    case = cases_of(name)[place]
    assert_same(explain(name, case, **options)[0], stack(case, oracle))


@named([(name, case) for name, case in ALL if unfit(name, case)])
def test_layers_that_do_not_fit_are_errors(name, case):
    with pytest.raises(GradCamKitError, match=unfit(name, case)):
        explain(name, case)


@pytest.mark.parametrize("case", VIT, ids=lambda case: case.name)
def test_transformer_written_out_is_the_model(case):
    for sample in case.samples.values():
        vit = ExplicitViT(sample)
        assert_same(vit.score(vit.blocks[-1]["tokens"]).detach(), sample.score)


def test_finer_score_equals_the_transcription():
    logits = torch.tensor([2.0, 1.5, -1.0, 2.2, 4.0], dtype=torch.float64)
    for target in range(5):
        assert float(finer(logits, target)) == pytest.approx(ref.finer_score(logits, target))


@pytest.mark.parametrize("case", SMALL[:4], ids=lambda case: case.name)
def test_scores_of_methods_with_a_target_of_their_own(case):
    _, found = explain("finer-cam", case)
    assert_same(found.scores, stack(case, lambda sample: sample.score, finer))
    _, found = explain("shapley-cam", case)
    expected = stack(case, lambda sample: sample.score, lambda logits, target: logit(2 * logits, target))
    assert_same(found.scores, expected - stack(case, lambda s: s.score, lambda logits, _: logits.logsumexp(0)))


def test_unknown_options_are_errors():
    with pytest.raises(OptionError, match="ranking is 'stdd'; expected 'std', 'gradient'; did you mean 'std'"):
        one_of("ranking", "stdd", ("std", "gradient"))
    for name, options in (
        ("layer-cam", {"gamma": 0.0}),
        ("seg-xres-cam", {"pool_window": 0}),
        ("winsor-cam", {"percentile": 101.0}),
    ):
        with pytest.raises(OptionError, match=next(iter(options))):
            METHODS[name](SMALL[0].model, "relu2", **options)


def test_seeds_matter():
    for name in ("random-cam", "smooth-grad-cam++"):
        first, again, other = (explain(name, SMALL[2], seed=seed)[0] for seed in (0, 0, 1))
        assert_close(first, again, rtol=0, atol=0)
        assert (first - other).abs().max() > 0.01 * first.abs().max()
