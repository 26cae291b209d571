"""What metrics cost beside plain forward passes of as many images, and beside other libraries on the same work."""

from __future__ import annotations


import torch
import torchvision
from torch import Tensor, nn

from benchmarks.measure import Ratio, Work, interleave
from gradcam_kit import GradCAM
from gradcam_kit.capture import rescoring
from gradcam_kit.metrics import deletion, insertion, road_combined

PERCENTAGES = (20.0, 40.0, 60.0, 80.0)


def against_forward(batch: int, steps: int, rounds: int, batch_size: int = 16) -> dict[str, Ratio]:
    """Deletion and insertion, and ROAD in both orders, on ResNet-18 at 224 x 224 with heatmaps of Grad-CAM."""
    model, images, heatmaps = _work(batch)
    results = {}
    with rescoring(model, images, batch_size=batch_size) as rescore:

        def curves() -> object:
            shared = {"steps": steps, "batch_size": batch_size}
            return deletion(heatmaps, images, rescore, **shared), insertion(heatmaps, images, rescore, **shared)  # type: ignore[arg-type]

        def road() -> object:
            return road_combined(heatmaps, images, rescore, percentages=PERCENTAGES, batch_size=batch_size)

        works: tuple[tuple[str, int, Work], ...] = (
            ("deletion + insertion", 2 * batch * (steps + 1), curves),
            ("ROAD, both orders", 2 * batch * len(PERCENTAGES), road),
        )
        for name, rows, work in works:
            plain = f"plain forward of {rows} images"
            results |= interleave({plain: _forwards(model, images, rows, batch_size), name: work}, rounds, plain)
    return results


def against_peers(rounds: int) -> dict[str, Ratio]:
    """ROAD of two images as pytorch-grad-cam has it, with the same percentages, and ours."""
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    model, images, heatmaps = _work(2)
    classes = model(images).argmax(1)
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in classes]
    theirs = ROADCombined(percentiles=[int(p) for p in PERCENTAGES])
    maps = heatmaps.numpy()

    def ours() -> object:
        with rescoring(model, images, classes) as rescore:
            return road_combined(heatmaps, images, rescore, percentages=PERCENTAGES)

    def pytorch_grad_cam() -> object:
        return theirs(images, maps, targets, model)

    return interleave({"ROAD, both orders": ours, "pytorch-grad-cam's ROADCombined": pytorch_grad_cam}, rounds, "ROAD, both orders")


def _work(batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18(weights=None).eval()
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return model, images, GradCAM(model, "layer4")(images)


def _forwards(model: nn.Module, images: Tensor, rows: int, batch_size: int) -> Work:
    chunk = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size].contiguous()

    def work() -> None:
        with torch.inference_mode():
            for start in range(0, rows, batch_size):
                model(chunk[: rows - start])

    return work
