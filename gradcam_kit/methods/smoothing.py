"""Wrappers that smooth the maps of any method: over noise, over flips and brightness, or by a principal component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.capture import Inputs, in_fastest_format, read_inputs
from gradcam_kit.errors import InputError, OptionError, kind_of
from gradcam_kit.methods.arithmetic.components import first_component
from gradcam_kit.methods.arithmetic.perturbations import check_std, gaussian_noise
from gradcam_kit.methods.base import BaseCAM
from gradcam_kit.methods.engine.assembly import assemble, signed_maps
from gradcam_kit.methods.engine.engine import capture_for
from gradcam_kit.methods.engine.explanation import Explanation
from gradcam_kit.options import positive_int
from gradcam_kit.types import Images, LayerCapture


class View(NamedTuple):
    """The batch in a changed form, and whether the last axis runs backward in it."""

    images: Float[Tensor, "n c *t"]
    flipped: bool = False


def check_cam(wrapper: str, cam: object) -> BaseCAM:
    """Return the method, or raise InputError for what is none."""
    if not isinstance(cam, BaseCAM):
        raise InputError(f"{wrapper} got {kind_of(cam)}; expected a CAM object such as GradCAM(model)")
    return cam


class _Mean:
    """The mean of a method's saliency over views of the images, all with the targets of the images as they are.

    Args:
        cam: any method.
    """

    def __init__(self, cam: BaseCAM) -> None:
        self.cam = check_cam(type(self).__name__, cam)

    def views(self, images: Float[Tensor, "n c *t"]) -> Iterator[View]:
        """What the mean is taken over."""
        raise NotImplementedError

    def __call__(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Float[Tensor, "n *mt"]:
        """Explain a batch. Arguments and result as in calling the method."""
        return self.explain(images, targets, **forward_kwargs).heatmaps

    @torch.inference_mode(False)
    def explain(self, images: Images, targets: Any = None, **forward_kwargs: Any) -> Explanation:
        """Explain a batch: `saliency` and what follows from it are of the mean, `scores` and `output` of the images.

        As many views run in one pass as fit into the method's `batch_size`. A callable target without `select` gets
        the output of one view at a time.
        """
        inputs = read_inputs(images, forward_kwargs, self.cam.model)
        if inputs.n == 0:
            return self.cam.explain(images, targets, **forward_kwargs)
        return in_fastest_format(self.cam.model, inputs, lambda inputs: self._mean(inputs, targets))

    def _mean(self, inputs: Inputs, targets: Any) -> Explanation:
        with capture_for([self.cam], inputs, targets) as (clean, (layers,)):
            pass
        shared = clean.target is None or hasattr(clean.target, "select")
        together = max(1, self.cam.batch_size // inputs.n) if shared else 1
        views = self.views(inputs.images)
        found = [self._explain(part, inputs, clean.target) for part in iter(lambda: list(islice(views, together)), [])]
        saliency = {name: torch.cat([maps[name] for maps, _ in found]).mean(0) for name in found[0][0]}
        importance = [torch.cat(shares).mean(0) for shares in zip(*(shares for _, shares in found), strict=True)]
        return assemble(self.cam, clean, layers, saliency, importance)

    def _explain(
        self, views: list[View], inputs: Inputs, target: Any
    ) -> tuple[dict[str, Float[Tensor, "views n *ms"]], list[Float[Tensor, "views n *m"]]]:
        """Maps and importance of the layers in some views, from one pass."""
        index = torch.arange(inputs.n, device=inputs.images.device).repeat(len(views))
        changed = inputs.with_images(torch.cat([view.images for view in views]), index)
        if hasattr(target, "select"):
            target = target.select(index)
        with capture_for([self.cam], changed, target, settled=True) as (captured, (layers,)):
            maps, importance = signed_maps(self.cam, captured, layers)
        apart = (len(views), inputs.n)
        saliency = {name: _turn_back(rows.unflatten(0, apart), views) for name, rows in maps.items()}
        return saliency, [share.unflatten(0, apart) for share in importance]


def _turn_back(maps: Float[Tensor, "views n *ms"], views: list[View]) -> Float[Tensor, "views n *ms"]:
    return torch.stack([one.flip(-1) if view.flipped else one for one, view in zip(maps, views, strict=True)])


class Smooth(_Mean):
    """The mean of a method's saliency over noisy images; no paper, after SmoothGrad (Smilkov et al. 2017).

    Args:
        cam: any method.
        samples: noisy copies of each image; they multiply the method's price.
        std: of the Gaussian noise, in units of the normalized images.
        seed: of the noise, of which all images get the same draws.
    """

    def __init__(self, cam: BaseCAM, *, samples: int = 16, std: float = 0.3, seed: int = 0) -> None:
        super().__init__(cam)
        positive_int("samples", samples)
        check_std(std)
        self.samples, self.std, self.seed = samples, std, seed

    def views(self, images: Float[Tensor, "n c *t"]) -> Iterator[View]:
        """The images with noise."""
        for noise in gaussian_noise(self.samples, images, self.seed):
            yield View(images + self.std * noise)


class TestTime(_Mean):
    """The mean of a method's saliency over the images and their mirror images, each in several brightnesses; no paper.

    The mirror turns the last axis (left and right, or the time of a signal), and its maps are turned back. A target
    that names places in the picture (a mask, a box) does not turn with it: use `Smooth` there.

    Args:
        cam: any method.
        brightness: factors of the normalized images; with the mirror, two passes each.
    """

    __test__ = False  # not a test case

    def __init__(self, cam: BaseCAM, *, brightness: Sequence[float] = (0.9, 1.0, 1.1)) -> None:
        super().__init__(cam)
        if not brightness:
            raise OptionError("brightness is empty; expected at least one factor")
        self.brightness = tuple(brightness)

    def views(self, images: Float[Tensor, "n c *t"]) -> Iterator[View]:
        """The images and their mirror images."""
        for factor in self.brightness:
            yield View(factor * images)
            yield View(factor * images.flip(-1), flipped=True)


class EigenSmooth(BaseCAM):
    """The first principal component of a method's weighted maps w_k A_k instead of their sum; no paper.

    It is a method itself: it shares passes with others, and `Smooth` and `TestTime` take it.

    Args:
        cam: a method that sums the channels with weights (Grad-CAM, XGrad-CAM, ...).
        center: subtract each weighted map's mean first (pytorch-grad-cam does).
    """

    def __init__(self, cam: BaseCAM, *, center: bool = False) -> None:
        check_cam("EigenSmooth", cam)
        if type(cam).weights is BaseCAM.weights or type(cam).saliencies is not BaseCAM.saliencies:
            raise InputError(
                f"{type(cam).__name__} is no sum of weighted channels; EigenSmooth expects a method that implements "
                "`weights`, such as GradCAM"
            )
        super().__init__(
            cam.model, reshape=cam.reshape, fusion=cam.fusion, normalize=cam.normalize, batch_size=cam.batch_size
        )
        self.cam, self.center = cam, center
        self.target_layers, self.chosen_layers, self.layer_choice = (
            cam.target_layers,
            cam.chosen_layers,
            cam.layer_choice,
        )
        self.needs, self.target_type, self.class_agnostic = cam.needs, cam.target_type, cam.class_agnostic

    def weights(self, layer: LayerCapture) -> Float[Tensor, "n k *w"]:
        """The method's."""
        return self.cam.weights(layer)

    def saliency(self, layer: LayerCapture) -> Float[Tensor, "n *s"]:
        """The component, with a fixed sign."""
        return first_component(self.weights(layer) * layer.activations, self.center)

    def importance(self, layer: LayerCapture) -> Float[Tensor, "n *m"] | None:
        """The method's."""
        return self.cam.importance(layer)

    def scale(self, heatmaps: Float[Tensor, "r *s"], depth: int, layers: int) -> Float[Tensor, "r *s"]:
        """The method's."""
        return self.cam.scale(heatmaps, depth, layers)

    def fuse(
        self, heatmaps: list[Float[Tensor, "r *t"]], importance: list[Float[Tensor, " r"]]
    ) -> Float[Tensor, "r *t"]:
        """The method's."""
        return self.cam.fuse(heatmaps, importance)
