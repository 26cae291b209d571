"""`compare`: explain, measure, and compare methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from gradcam_kit.capture import Inputs, check_model, read_inputs, with_channels
from gradcam_kit.comparison.compared import (
    ComparedMethod,
    Layers,
    Methods,
    compared_methods,
    costs,
    suited,
    with_balanced,
    with_baselines,
    with_shared_images,
)
from gradcam_kit.comparison.gallery import shown_pictures
from gradcam_kit.comparison.measuring import baseline_maps, known_metrics, measure_all
from gradcam_kit.comparison.question import Answer, Question, answer
from gradcam_kit.comparison.record import Comparison
from gradcam_kit.errors import InputError, ShapeError
from gradcam_kit.metrics import Metric, MetricResult
from gradcam_kit.options import one_of
from gradcam_kit.pixels.pictures import RGB, Picture, rgb_picture
from gradcam_kit.renamed import former_arguments
from gradcam_kit.targets.names import carried_names, named_targets, read_class_names
from gradcam_kit.targets.scores import SCORES, ScoreKind
from gradcam_kit.targets.text import TextTarget
from gradcam_kit.transforms import PictureTransform, as_transform
from gradcam_kit.types import Images, Reshape


@former_arguments(controls="baselines")
def compare(
    model: nn.Module,
    images: Images,
    methods: Methods = None,
    target_layers: Layers = None,
    targets: Any = None,
    metrics: str | Metric | Sequence[str | Metric] = (),
    *,
    masks: Bool[Tensor, "n *t"] | None = None,
    pictures: Sequence[Picture] | None = None,
    names: Sequence[str] | None = None,
    class_names: Any = None,
    scores: ScoreKind | None = None,
    reshape: Reshape | None = None,
    image_input: int | str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    identities: Int[Tensor, " n"] | None = None,
    cost: bool = True,
    baselines: bool = True,
    keep_modes: bool = False,
) -> Comparison:
    """Explain the same images by several methods, at several layers, from as few passes as possible.

    The parameters are typed in notebooks, so they are not grouped in a record; `Question` groups them.

    Args:
        model: any PyTorch model; methods that are not objects with a model of their own explain this one.
        images: as in calling a method.
        methods: names in `METHODS` or `metrics.BASELINES`, classes, objects with their own options and layers, or a
            mapping from labels to any of these. Objects of another model, such as an earlier checkpoint, explain the
            same classes, and their own model scores and measures them. None = six well-known methods, and BalancedCAM
            for token models; "all" = all single-pass methods that suit the model (the others are in `left_out`).
        target_layers: a module or its name; None = chosen automatically. The layers of a sequence are compared one by
            one; a sequence within the sequence is fused; a mapping gives labels.
        targets: as in calling a method, `(n, m)` explains m classes of each image; also class names, if known.
        metrics: names in `METRICS`, or `Metric` objects, measured for every method; a single metric needs no list.
        masks: masks of the objects, for metrics that score how well heatmaps find them.
        pictures: the pictures to show beneath the heatmaps; None = the images, with the normalization of
            `model.transform` undone if the model carries one, else each stretched to its range.
        names: the names of the images; None = their indices in the batch.
        class_names: the names of the classes; None = `model.class_names`, if the model carries them.
        scores: the kind of score of a class: "softmax", "sigmoid" (of each output) or "raw" (the unchanged output);
            None = inferred from the outputs: "raw" if they already are probabilities, else "sigmoid" for a single
            output and "softmax" for several.
        reshape: as in the constructor of a method.
        image_input: as in the constructor of a method. All methods of a comparison explain this input, and metrics
            change it.
        batch_size: the largest number of masked rows in one forward pass.
        seed: the seed of random draws of metrics and baselines.
        identities: a number per image from which its draws are derived; None = from the values of the image.
        cost: explain the first image once more by each method alone, to see what the method costs.
        baselines: also measure all `metrics.BASELINES`, because the numbers of methods mean little without them; each
            takes as long as the metrics of one more method. `controls`, the former name, is accepted for one release.
        keep_modes: leave modules in train mode as they are, such as dropout that is on deliberately, for the methods
            that `compare` makes and for all scores; objects keep their own setting. Maps and numbers are then random,
            and the result of a batch differs from the results one by one; see `BaseCAM`.

    Raises:
        UnknownNameError: a method or metric that does not exist.
        InputError: no images, or a metric without the masks that it needs.
        ShapeError: masks, pictures or names whose number differs from the number of images.
    """
    inputs = read_inputs(images, {}, image_input=image_input)
    class_names = carried_names(model) if class_names is None else read_class_names(class_names)
    targets = named_targets(targets, class_names)
    wanted = _checked_metrics(metrics, masks)
    _check(scores, inputs.n, {"masks": masks, "pictures": pictures, "names": names})
    options = {"reshape": reshape, "image_input": image_input, "batch_size": batch_size, "keep_modes": keep_modes}
    found, left_out = _methods_of(model, methods, target_layers, options, inputs)
    question = Question(
        check_model(model),
        with_channels(check_model(model), with_shared_images(found, inputs, targets)),
        targets,
        scores="raw" if scores is None and isinstance(targets, TextTarget) else scores,  # scores of texts are cosines
        masks=masks,
        batch_size=batch_size,
        seed=seed,
        identities=identities,
        keep_modes=keep_modes,
    )
    found, answered, unsuited = _with_advised(methods, found, answer(question, found), options)
    heatmaps, numbers = _measured(answered, with_baselines(found) if baselines and wanted else found, wanted)
    question, labels = answered.question, [one.label for one in found]
    return Comparison(
        heatmaps={label: heatmaps[label] for label in labels},
        explanations=answered.explanations,
        measured={label: own for label, own in numbers.items() if label in labels},
        baselines={label: own for label, own in numbers.items() if label not in labels},
        costs=costs(found, question.inputs, question.targets) if cost else {},
        targets=answered.targets,
        scores=answered.scores,
        score_kind=question.scores,
        other_scores=answered.other_scores,
        pictures=_pictures(question) if pictures is None else list(map(rgb_picture, pictures)),
        names=list(map(str, names or [f"image {i}" for i in range(inputs.n)])),
        class_names=class_names,
        model_name=type(question.model).__name__,
        left_out={**left_out, **unsuited},
    )


def _methods_of(
    model: nn.Module, methods: Methods, layers: Layers, options: Mapping[str, Any], inputs: Inputs
) -> tuple[list[ComparedMethod], dict[str, str]]:
    """Return the methods to compare, and for "all" the unsuitable methods with the reasons."""
    found = compared_methods(model, methods, layers, options)
    return suited(found, inputs) if methods == "all" else (list(found), {})


def _with_advised(
    methods: Methods, found: Sequence[ComparedMethod], answered: Answer, options: Mapping[str, Any]
) -> tuple[list[ComparedMethod], Answer, dict[str, str]]:
    """Add BalancedCAM to the default methods if they explain tokens; if it is unsuitable, return the reason."""
    if methods is not None:
        return list(found), answered, {}
    asked = answered.question
    more, explanations, left_out = with_balanced(found, answered.explanations, asked.inputs, asked.targets, options)
    return more, replace(answered, explanations=explanations), left_out


def _check(scores: str | None, n: int, given: Mapping[str, Sized | None]) -> None:
    """Raise an error for an unknown kind of scores, an empty batch, or a list of the wrong length."""
    if scores is not None:
        one_of("scores", scores, SCORES)
    if n == 0:
        raise InputError("there are no images; expected a batch of at least one")
    for what, values in given.items():
        if values is not None and len(values) != n:
            raise ShapeError(f"{len(values)} {what} for {n} images; expected one for each")


def _checked_metrics(metrics: str | Metric | Sequence[str | Metric], masks: Tensor | None) -> list[Metric]:
    """Return the metrics without duplicates; raise InputError if a metric needs masks and there are none."""
    wanted = known_metrics([metrics] if isinstance(metrics, str | Metric) else metrics)
    for metric in wanted:
        if metric.needs_masks and masks is None:
            raise InputError(
                f"the metric {metric.name!r} needs object masks; pass masks=, a boolean tensor of shape (n, *t)"
            )
    return wanted


def _measured(
    answered: Answer, found: Sequence[ComparedMethod], metrics: Sequence[Metric]
) -> tuple[dict[str, Tensor], dict[str, dict[str, MetricResult]]]:
    """Return the heatmaps of methods and baselines by label, and their measurements."""
    heatmaps = {label: explanation.heatmaps for label, explanation in answered.explanations.items()}
    heatmaps |= baseline_maps(answered.question, found, answered.per_image)
    return heatmaps, measure_all(answered.question, heatmaps, found, metrics)


def _pictures(question: Question) -> list[RGB]:
    """Return the images with the model's own normalization undone."""
    images, transform = question.inputs.images, getattr(question.model, "transform", None)
    transform = None if transform is None else as_transform(transform)
    if isinstance(transform, PictureTransform):
        return shown_pictures(images, transform.mean, transform.std)
    return shown_pictures(images)
