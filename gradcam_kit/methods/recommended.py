"""The recommended order of the methods, and what each is good for."""

from __future__ import annotations

from gradcam_kit.methods.contract import METHODS

_GOOD_FOR = {
    "grad-cam": "the first look at any classifier",
    "balanced-cam": "the first look at a vision transformer",
    "layer-cam": "fine detail, at early layers too",
    "hires-cam": "exact positions, at the last layer",
    "grad-cam++": "several objects of the same class",
    "finer-cam": "what sets a class apart from similar classes",
    "refine-cam": "sharper maps from two resolutions",
    "generic-attention": "a vision transformer, through the attention of all blocks",
    "grad-eclip": "CLIP: where an image fits a text",
    "legrad": "large vision transformers, block by block",
    "odam": "one box of a detector",
    "d-rise": "box and class of any detector, without gradients",
    "seg-xres-cam": "a region of a segmentation",
    "seg-eigen-cam": "the structure on which a segmented region depends",
    "ablation-cam": "saturated scores: removes channels, needs no gradients",
    "score-cam": "models whose gradients are noisy or vanish",
    "group-cam": "nearly the quality of Score-CAM, with far fewer passes",
    "recipro-cam": "all classes without gradients, at a late layer",
    "vit-recipro-cam": "vision transformers without gradients",
    "rise": "any model, from inputs and outputs alone",
    "sess": "small objects, or objects of different sizes",
    "xgrad-cam": "smooth maps that sum to the layer's contribution",
    "shapley-cam": "scores that saturate, such as probabilities",
    "integrated-grad-cam": "gradients that vanish at the image itself",
    "expected-grad-cam": "vanishing gradients, with less dependence on one baseline",
    "smooth-grad-cam++": "models whose gradients are noisy",
    "winsor-cam": "what the whole network used, without a choice of layers",
    "eigen-grad-cam": "smooth maps of a class",
    "grad-cam-elementwise": "layers with negative activations",
    "is-cam": "Score-CAM for scores that saturate in the full image",
    "ss-cam": "a smoother Score-CAM at many times its cost",
    "cam": "the cheapest map, for mean pooling and one linear layer",
    "einsum-cam": "all classes from one forward pass",
    "full-grad": "a map that accounts for the whole score",
    "guided-grad-cam": "sharp outlines; trust the location, not the detail",
    "guided-backprop": "edges; the map hardly depends on what was learned",
    "eigen-cam": "models without classes: the strongest pattern",
    "kpca-cam": "a nonlinear variant of Eigen-CAM",
    "lafam": "self-supervised backbones: where a layer responds",
    "fem": "rare, strong features, whatever the class",
    "attention-rollout": "where a transformer gathers information, whatever the class",
    "random-cam": "a baseline that a method has to beat to show anything",
}


def recommended() -> dict[str, str]:
    """Return what each method of `METHODS` is good for, in the order in which to try the methods.

    Methods that are not part of this package come last, with the first sentence of their docstring.

    Example:
        >>> from gradcam_kit.methods.recommended import recommended
        >>> next(iter(recommended().items()))
        ('grad-cam', 'the first look at any classifier')
    """
    ordered = {name: text for name, text in _GOOD_FOR.items() if name in METHODS}
    others = {name: _first_sentence(method.__doc__) for name, method in METHODS.items() if name not in ordered}
    return ordered | others


def _first_sentence(text: str | None) -> str:
    paragraph = (text or "").strip().partition("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0].rstrip(".")
