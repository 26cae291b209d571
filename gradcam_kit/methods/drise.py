"""D-RISE: Petsiuk et al., CVPR 2021, https://arxiv.org/abs/2006.03204."""

from __future__ import annotations

from gradcam_kit.methods.rise import RISE
from gradcam_kit.types import Evidence, LayerCapture, Rescore


class DRISE(RISE, name="d-rise"):
    r"""Average random masks, weighted by how well a detection survives them: RISE for detectors.

    The map is $\frac{1}{N p} \sum_i s(x \odot M_i) M_i$. The similarity s is the largest product, over all detections
    in the masked image, of the intersection over union with the explained box, the cosine of the class probabilities,
    and the objectness; see `DetectionSimilarity`. D-RISE needs a `DetectionTarget` and explains its box and class
    together. To explain the score or one coordinate of the box alone, pass a `DetectionTarget` to RISE.

    Args:
        masks: number of masks N; the default is the paper's.
        cells: number of mask cells along each axis, which is larger than in RISE because boxes are small.
        visible: the probability that a cell remains visible, in (0, 1).
        seed: seed of the masks.

    Example:
        >>> import torch
        >>> from gradcam_kit import DRISE
        >>> from gradcam_kit.targets import DetectionTarget
        >>> class Detector(torch.nn.Module):
        ...     def forward(self, images):
        ...         box = torch.tensor([[2.0, 2.0, 6.0, 6.0]])
        ...         return [{"boxes": box, "scores": image[:, 2:6, 2:6].mean()[None]} for image in images]
        >>> model, images = Detector(), torch.ones(1, 3, 8, 8)
        >>> targets = DetectionTarget.of(model(images))
        >>> heatmaps = DRISE(model, masks=100)(images, targets[0])
        >>> bool(heatmaps[0, 2:6, 2:6].mean() > heatmaps.mean())
        True
    """

    needs = Evidence.RESCORE | Evidence.DETECTIONS

    masks: int = 5000
    cells: int = 16

    def rows(self, layer: LayerCapture) -> Rescore:
        """Return the function that scores a masked image by its detection most similar to the explained one."""
        assert layer.rescore_similarity is not None
        return layer.rescore_similarity
