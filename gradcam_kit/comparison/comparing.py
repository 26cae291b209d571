"""`compare`: explain, measure, and put side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from gradcam_kit.capture import ClassProbability, Inputs, check_model, read_inputs, rescoring, score_kind, with_channels
from gradcam_kit.comparison.compared import (
    Layers,
    Methods,
    call_of,
    compared_methods,
    costs,
    explained,
    suited,
    with_balanced,
    with_baselines,
    with_shared_images,
)
from gradcam_kit.comparison.gallery import shown_pictures
from gradcam_kit.comparison.measuring import baseline_maps, known_metrics, measured
from gradcam_kit.comparison.record import Comparison
from gradcam_kit.errors import InputError, ShapeError, TargetError
from gradcam_kit.methods import Explanation
from gradcam_kit.metrics import Metric
from gradcam_kit.metrics.rows import sample_index
from gradcam_kit.options import one_of
from gradcam_kit.pixels.pictures import RGB, Picture, rgb_picture
from gradcam_kit.renamed import former_arguments
from gradcam_kit.targets.names import carried_names, named_targets, read_class_names
from gradcam_kit.targets.scores import SCORES, ScoreKind
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

    Args:
        model: any PyTorch model; whatever is no object with a model of its own is of this one.
        images: as in calling a method.
        methods: names in `METHODS` or `metrics.BASELINES`, classes, objects that bring their own options and layers, or
            a mapping from labels to those. Objects of another model, such as one before it was trained further, explain
            the same classes, and are scored and measured by their own model. None = six well-known ones, and
            BalancedCAM for token models; "all" = all that need a single pass and suit the model, the others are in
            `left_out`.
        target_layers: None = chosen automatically, a module or its name; or a sequence of those, which are compared one
            by one. A sequence in the sequence stands for layers that are fused; a mapping gives labels.
        targets: as in calling a method; `(n, m)` explains m classes of each image. Class names where they are known.
        metrics: names in `METRICS`, or `Metric` objects, measured for every method; one alone needs no list.
        masks: where the objects are, for metrics that ask how well heatmaps find them.
        pictures: to be shown beneath the heatmaps; None = the images, with the model's own normalization undone
            (`model.transform`, if it carries one), else each stretched to its range.
        names: of the images; None = their places in the batch.
        class_names: None = `model.class_names`, if it carries them.
        scores: what the score of a class is: "softmax", "sigmoid" (of each output by itself) or "raw" (the output as it
            is); None = by evidence: "raw" where the outputs are probabilities already, else the softmax, of a single
            output the sigmoid.
        reshape: as in making a method.
        image_input: as in making a method. All methods of a comparison explain the same input, which metrics change.
        batch_size: the most masked rows in one forward pass.
        seed: of the random draws of metrics and baselines.
        identities: a number per image, to which its draws belong; None = from the values of the image.
        cost: whether each method explains the first image once more, alone, to see what it costs.
        baselines: whether metrics are measured of all `metrics.BASELINES` too, because the numbers of methods mean
            little without them; each takes as long as the metrics of one more method. `controls`, the former name, is
            accepted for one release.
        keep_modes: leave modules that are in train mode in it, such as dropout that is on on purpose, for the methods
            that are made here and for all scores; objects keep their own. Maps and numbers are then random, and a batch
            does not equal its images one by one; see `BaseCAM`.

    Raises:
        UnknownNameError: no such method or metric.
        InputError: no images, or a metric without what it needs.
        ShapeError: masks, pictures or names whose number differs from that of the images.
    """
    inputs = read_inputs(images, {}, image_input=image_input)
    if scores is not None:
        one_of("scores", scores, SCORES)
    class_names = carried_names(model) if class_names is None else read_class_names(class_names)
    targets = named_targets(targets, class_names)
    if inputs.n == 0:
        raise InputError("there are no images to compare on; expected a batch of at least one")
    for what, given in {"masks": masks, "pictures": pictures, "names": names}.items():
        if given is not None and len(given) != inputs.n:
            raise ShapeError(f"{len(given)} {what} for {inputs.n} images; expected one for each")
    wanted = known_metrics([metrics] if isinstance(metrics, str | Metric) else metrics)
    for metric in wanted:
        if metric.needs_masks and masks is None:
            raise InputError(f"the metric {metric.name!r} needs to know where the objects are; pass masks=(n, *t) bool")
    options = {
        "reshape": reshape,
        "image_input": image_input,
        "batch_size": batch_size,
        "keep_modes": keep_modes,
    }
    found = compared_methods(model, methods, target_layers, options)
    left_out: dict[str, str] = {}
    if isinstance(methods, str) and methods == "all":
        found, left_out = suited(found, inputs)
    model = check_model(model)
    inputs = with_channels(model, with_shared_images(found, inputs, targets))
    others = {one.label for one in found if one.cam is not None and check_model(one.cam.model) is not model}
    policy = "predicted" if targets is None else "given"
    foreign = len(others) == sum(one.cam is not None for one in found)
    by_model: Tensor | None = None
    if others and (targets is None or foreign):  # all explain what this model predicts, and baselines are about it
        kind = scores or score_kind(model, inputs)
        targets, by_model = _asked(model, inputs, targets, batch_size, keep_modes, kind)
    explanations = explained(found, inputs, targets)
    if methods is None:
        found, explanations, left_out = with_balanced(found, explanations, inputs, targets, options)
    kinds: dict[nn.Module, ScoreKind | None] = {}
    own: dict[str, Tensor | None] = {}
    for one in found:
        if one.cam is not None:
            explanation = explanations[one.label]
            if one.cam.model not in kinds:
                kinds[one.cam.model] = scores or score_kind(one.cam.model, inputs, explanation.output)
            own[one.label] = _scores(explanation, kinds[one.cam.model])
    kind = kinds[model] if model in kinds else scores or score_kind(model, inputs)
    first = sorted(explanations, key=others.__contains__)  # those of the model itself before others
    classes = next((explanations[label].targets for label in first if explanations[label].targets is not None), None)
    values = by_model if by_model is not None else next((own[one] for one in first if own[one] is not None), None)
    settled = targets if classes is None else classes
    several = values.shape[1] if values is not None and values.ndim == 2 else None
    participants = with_baselines(found) if baselines and wanted else found
    heatmaps = {label: explanation.heatmaps for label, explanation in explanations.items()}
    heatmaps |= baseline_maps(participants, inputs.images, several, seed, identities)
    numbers = measured(
        model,
        inputs,
        heatmaps,
        participants,
        wanted,
        targets=settled,
        policy=policy,
        masks=masks,
        seed=seed,
        identities=identities,
        batch_size=batch_size,
        keep_modes=keep_modes,
        scores={**{check_model(one): own for one, own in kinds.items()}, model: kind},
    )
    labels = [one.label for one in found]
    return Comparison(
        heatmaps={label: heatmaps[label] for label in labels},
        explanations=explanations,
        measured={label: own for label, own in numbers.items() if label in labels},
        baselines={label: own for label, own in numbers.items() if label not in labels},
        costs=costs(found, inputs, settled) if cost else {},
        targets=classes,
        scores=values,
        score_kind=kind,
        other_scores={label: one for label, one in own.items() if label in others and one is not None},
        pictures=_pictures(model, inputs) if pictures is None else [rgb_picture(picture) for picture in pictures],
        names=[f"image {i}" for i in range(inputs.n)] if names is None else list(map(str, names)),
        class_names=class_names,
        left_out=left_out,
    )


def _asked(
    model: nn.Module, inputs: Inputs, targets: Any, batch_size: int, keep_modes: bool, kind: ScoreKind | None
) -> tuple[Any, Tensor | None]:
    """The targets, None = the predicted classes, and the model's scores; None where its output is no class scores."""
    images, keywords = call_of(inputs)
    try:
        options: dict[str, Any] = {
            "image_input": inputs.slot,
            "scores": kind,
            "batch_size": batch_size,
            "keep_modes": keep_modes,
        }
        with rescoring(model, images, targets, **options, **keywords) as rescore:
            scores = rescore(inputs.images, sample_index(inputs.images))
            return rescore.classes if targets is None else targets, scores
    except (ShapeError, TargetError):
        return targets, None  # methods that look at no class need none, and others say so themselves


def _scores(explanation: Explanation, kind: ScoreKind | None) -> Tensor | None:
    """Probabilities of classes; of a target that is a callable its scores."""
    if explanation.targets is not None:
        return ClassProbability(explanation.targets, kind)(explanation.output)
    return explanation.scores


def _pictures(model: nn.Module, inputs: Inputs) -> list[RGB]:
    """The images with the model's own normalization undone."""
    transform = getattr(model, "transform", None)
    transform = None if transform is None else as_transform(transform)
    if isinstance(transform, PictureTransform):
        return shown_pictures(inputs.images, transform.mean, transform.std)
    return shown_pictures(inputs.images)
