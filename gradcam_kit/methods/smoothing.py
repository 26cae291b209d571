"""Smooth the maps of a method by averaging over noise or over flips and brightness, or by a principal component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.capture import Inputs, in_fastest_format, read_inputs, with_texts
from gradcam_kit.errors import InputError, OptionError, kind_of
from gradcam_kit.methods.arithmetic.components import first_component
from gradcam_kit.methods.arithmetic.perturbations import gaussian_noise
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.engine.assembly import assemble, signed_maps
from gradcam_kit.methods.engine.engine import capture_for, with_images_of
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.options import non_negative, positive_int
from gradcam_kit.types import Images, LayerCapture


class View(NamedTuple):
    """One view of the batch: the changed images, and whether their last axis is mirrored."""

    images: Float[Tensor, "n c *t"]
    flipped: bool = False


def check_cam(wrapper: str, cam: object) -> BaseCAM:
    """Return `cam` if it is a CAM object; raise InputError otherwise."""
    if not isinstance(cam, BaseCAM):
        raise InputError(f"{wrapper} got {kind_of(cam)}; expected a CAM object such as GradCAM(model)")
    return cam


class _Mean:
    """Average a method's saliency over views of the images, all with the targets of the unchanged images.

    Args:
        cam: any method.
    """

    def __init__(self, cam: BaseCAM) -> None:
        self.cam = check_cam(type(self).__name__, cam)

    def views(self, images: Float[Tensor, "n c *t"]) -> Iterator[View]:
        """Yield the views over which the mean is taken."""
        raise NotImplementedError

    def __call__(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Float[Tensor, "n *mt"]:
        """Explain a batch. The arguments and the shape of the heatmaps are those of the wrapped method."""
        return self.explain(images, targets, **forward_kwargs).heatmaps

    @torch.inference_mode(False)
    def explain(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Explanation:
        """Explain a batch: `saliency` is the mean over the views, from which the heatmaps are made.

        `scores` and `output` are those of the unchanged images. As many views run in one pass as fit into the method's
        `batch_size`. A callable target without `select` gets the outputs of the views one at a time.
        """
        inputs = read_inputs(images, forward_kwargs, self.cam.model, image_input=self.cam.image_input)
        if inputs.n == 0:
            return self.cam.explain(images, targets, **forward_kwargs)
        inputs, targets = with_texts(self.cam.model, inputs, targets)
        inputs = with_images_of(self.cam, inputs, targets)
        return in_fastest_format(self.cam.model, inputs, lambda inputs: self._mean(inputs, targets))

    def _mean(self, inputs: Inputs, targets: Any) -> Explanation:
        """Determine the targets from the unchanged images, then average the saliency over the views."""
        with capture_for([self.cam], inputs, targets) as (clean, (layers,)):
            pass
        # Views of a bag run in separate passes, because together their images would form a single bag.
        shared = (clean.target is None or hasattr(clean.target, "select")) and not clean.rows.is_bag
        together = max(1, self.cam.batch_size // inputs.n) if shared else 1
        views = self.views(inputs.images)
        select = not clean.rows.is_bag
        found = [
            self._explain(part, inputs, clean.target, select)
            for part in iter(lambda: list(islice(views, together)), [])
        ]
        saliency = {name: torch.cat([maps[name] for maps, _ in found]).mean(0) for name in found[0][0]}
        importance = [torch.cat(shares).mean(0) for shares in zip(*(shares for _, shares in found), strict=True)]
        return assemble(self.cam, clean, layers, saliency, importance)

    def _explain(
        self, views: list[View], inputs: Inputs, target: Any, select: bool
    ) -> tuple[dict[str, Float[Tensor, "views n *ms"]], list[Float[Tensor, "views n *m"]]]:
        """Return the maps and the importance of each layer for these views, from one pass."""
        index = torch.arange(inputs.n, device=inputs.images.device).repeat(len(views))
        changed = inputs.with_images(torch.cat([view.images for view in views]), index)
        if select and hasattr(target, "select"):
            target = target.select(index)
        with capture_for([self.cam], changed, target, settled=True) as (captured, (layers,)):
            maps, importance = signed_maps(self.cam, captured, layers)
        apart = (len(views), inputs.n)
        saliency = {name: _turn_back(rows.unflatten(0, apart), views) for name, rows in maps.items()}
        return saliency, [share.unflatten(0, apart) for share in importance]


def _turn_back(maps: Float[Tensor, "views n *ms"], views: list[View]) -> Float[Tensor, "views n *ms"]:
    """Mirror the maps of mirrored views back."""
    return torch.stack([one.flip(-1) if view.flipped else one for one, view in zip(maps, views, strict=True)])


class Smooth(_Mean):
    """Average a method's saliency over noisy images, as SmoothGrad (Smilkov et al. 2017) averages gradients.

    Smoothing removes the speckle that gradients have at early layers, but also blurs the map. With a large `std`, the
    map explains the noise rather than the image.

    Args:
        cam: any method.
        samples: number of noisy copies of each image, which multiplies the method's cost.
        std: standard deviation of the Gaussian noise, in units of the normalized images, at least 0.
        seed: seed of the noise; all images get the same draws.

    Example:
        >>> from gradcam_kit import LayerCAM, Smooth
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> Smooth(LayerCAM(load_demo_model(), "layer1"), samples=4)(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    def __init__(self, cam: BaseCAM, *, samples: int = 16, std: float = 0.3, seed: int = 0) -> None:
        super().__init__(cam)
        self.samples, self.std, self.seed = positive_int("samples", samples), non_negative("std", std), seed

    def views(self, images: Float[Tensor, "n c *t"]) -> Iterator[View]:
        """Yield the images with noise."""
        for noise in gaussian_noise(self.samples, images, self.seed):
            yield View(images + self.std * noise)


class TestTime(_Mean):
    """Average a method's saliency over the images and their mirror images, each at several levels of brightness.

    The mean reduces the effects of orientation and brightness. This variant is not from a paper. The mirror flips the
    last axis (left and right, or the time of a signal), and the maps are flipped back. A target with positions in the
    image (a mask, a box) is not flipped with it: use `Smooth` for such targets.

    Args:
        cam: any method.
        brightness: factors by which the normalized images are multiplied; each costs two passes, one of them on the
            mirrored images.

    Example:
        >>> from gradcam_kit import GradCAM, TestTime
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> TestTime(GradCAM(load_demo_model(), "layer4"), brightness=[0.9, 1.1])(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    __test__ = False  # tells pytest that this class is not a test case

    def __init__(self, cam: BaseCAM, *, brightness: Sequence[float] = (0.9, 1.0, 1.1)) -> None:
        super().__init__(cam)
        if not brightness:
            raise OptionError("brightness is empty; expected at least one factor")
        self.brightness = tuple(brightness)

    def views(self, images: Float[Tensor, "n c *t"]) -> Iterator[View]:
        """Yield the images and their mirror images."""
        for factor in self.brightness:
            yield View(factor * images)
            yield View(factor * images.flip(-1), flipped=True)


class EigenSmooth(BaseCAM):
    """Replace the sum of a method's weighted maps w_k A_k by their first principal component.

    The maps are smoother, but each needs the solution of an eigenproblem. This variant is not from a paper. The result
    is itself a method: it shares passes with other methods, and `Smooth` and `TestTime` can wrap it.

    Args:
        cam: a method that sums the channels with weights (Grad-CAM, XGrad-CAM, ...).
        center: whether to subtract each weighted map's mean first, as pytorch-grad-cam does.

    Example:
        >>> from gradcam_kit import EigenSmooth, GradCAM
        >>> from gradcam_kit.demo import collate, draw, load_demo_model
        >>> EigenSmooth(GradCAM(load_demo_model(), "layer4"))(collate([draw(0)]).images).shape
        torch.Size([1, 128, 128])
    """

    def __init__(self, cam: BaseCAM, *, center: bool = False) -> None:
        check_cam("EigenSmooth", cam)
        if type(cam).weights is BaseCAM.weights or type(cam).saliencies is not BaseCAM.saliencies:
            raise InputError(
                f"{type(cam).__name__} does not sum weighted channels; EigenSmooth expects a method that implements "
                "`weights`, such as GradCAM"
            )
        super().__init__(
            cam.model,
            cam.target_layers,
            reshape=cam.reshape,
            image_input=cam.image_input,
            fusion=cam.fusion,
            normalize=cam.normalize,
            batch_size=cam.batch_size,
            keep_modes=cam.keep_modes,
            gradient_rule=cam.gradient_rule,
        )
        self.cam, self.center = cam, center
        self.chosen_layers, self.layer_choice = cam.chosen_layers, cam.layer_choice
        self.needs, self.target_type, self.class_agnostic = cam.needs, cam.target_type, cam.class_agnostic

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *w"]:
        """Return the weights of the wrapped method."""
        return self.cam.weights(layer)

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """Return the first principal component of the weighted maps, with the sign chosen by `fix_sign`."""
        return first_component(self.weights(layer) * layer.activations, self.center)

    def layer_importance(self, layer: LayerCapture) -> Float[Tensor, "n *m"] | None:
        """Return the importance that the wrapped method gives the layer."""
        return self.cam.layer_importance(layer)

    def scale(self, heatmaps: Float[Tensor, "r *s"], depth: int, layers: int) -> Float[Tensor, "r *s"]:
        """Scale as the wrapped method does."""
        return self.cam.scale(heatmaps, depth, layers)

    def fuse(
        self, heatmaps: list[Float[Tensor, "r *t"]], importance: list[Float[Tensor, " r"]]
    ) -> Float[Tensor, "r *t"]:
        """Fuse as the wrapped method does."""
        return self.cam.fuse(heatmaps, importance)
