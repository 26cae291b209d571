"""`compare`: explain the same images with several methods, and measure the heatmaps."""

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
    """Explain the same images with several methods, at one or more layers, in as few passes as possible.

    The parameters are not grouped in a record, because calls are typed by hand in notebooks.

    Args:
        model: any PyTorch model. All methods that are given as names or classes explain it.
        images: the images, as in a call of a method.
        methods: names in `METHODS` or `metrics.BASELINES`, classes, objects with their own options and layers, or a
            mapping from labels to any of these. Objects with another model, such as an earlier checkpoint, explain
            the same classes; their scores and metrics are computed with their own model. None = six well-known
            methods, and BalancedCAM for models of tokens; "all" = all single-pass methods that suit the model (for all
            others, `left_out` has the reason).
        target_layers: a module or its name; None = chosen automatically. The layers of a sequence are compared with
            each other; an inner sequence of layers is fused into one map; a mapping goes from labels to layers.
        targets: as in a call of a method; `(n, m)` explains m classes of each image. Class names are accepted if the
            names are known.
        metrics: names in `METRICS`, or `Metric` objects, measured for every method; a single metric needs no list.
        masks: masks of the objects, for metrics that score how well heatmaps find them.
        pictures: the pictures to show beneath the heatmaps; None = the images, with the normalization of
            `model.transform` undone if the model carries one, else stretched to [0, 1] if values lie outside.
        names: the names of the images; None = "image 0", "image 1", and so on.
        class_names: the names of the classes; None = `model.class_names`, if the model carries them.
        scores: the kind of score of a class: "softmax", "sigmoid" (of each output) or "raw" (the unchanged output);
            None = inferred: from the problem type in the model's configuration if there is one, else "raw" if the
            outputs already are probabilities, else "sigmoid" for a single output and "softmax" for several.
        reshape: as in the constructor of a method.
        image_input: as in the constructor of a method. All methods of a comparison explain this input, and metrics
            change it.
        batch_size: the largest number of masked rows in one forward pass.
        seed: the seed of random draws of metrics and baselines.
        identities: a number for each image, from which the random draws for this image are derived; None =
            derived from the image's values.
        cost: run each method once more, on the first image alone, to measure its cost.
        baselines: also measure all `metrics.BASELINES`, because metrics of methods mean little without a reference.
            Measuring a baseline takes as long as measuring a method, for "random" five times as long. `controls`, the
            former name, is accepted for one release.
        keep_modes: do not switch modules in train mode, such as deliberate dropout, to eval mode. This applies to all
            scores and to methods that are given as names or classes; objects keep their own setting. Heatmaps and
            metrics may then be random, and may depend on the batch in which an image is; see `BaseCAM`.

    Raises:
        UnknownNameError: a method or metric that does not exist.
        InputError: no images, no methods, a metric without the masks that it needs, or methods that explain different
            inputs of the model.
        ShapeError: masks, pictures or names whose number differs from the number of images.
        OptionError: an unknown kind of scores, or two different metrics with the same name.
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
    """Return the methods to compare, and, if they are "all", why unsuitable methods are left out."""
    found = compared_methods(model, methods, layers, options)
    return suited(found, inputs) if methods == "all" else (list(found), {})


def _with_advised(
    methods: Methods, found: Sequence[ComparedMethod], answered: Answer, options: Mapping[str, Any]
) -> tuple[list[ComparedMethod], Answer, dict[str, str]]:
    """Add BalancedCAM to the default methods if they explain tokens; return why if BalancedCAM is unsuitable."""
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
        raise InputError("there are no images; expected a batch of at least one image")
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
    """Return label -> heatmaps of the methods and baselines, and label -> metric -> result."""
    heatmaps = {label: explanation.heatmaps for label, explanation in answered.explanations.items()}
    heatmaps |= baseline_maps(answered.question, found, answered.per_image)
    return heatmaps, measure_all(answered.question, heatmaps, found, metrics)


def _pictures(question: Question) -> list[RGB]:
    """Return the images as pictures, with the normalization of the model's transform undone."""
    images, transform = question.inputs.images, getattr(question.model, "transform", None)
    transform = None if transform is None else as_transform(transform)
    if isinstance(transform, PictureTransform):
        return shown_pictures(images, transform.mean, transform.std)
    return shown_pictures(images)
