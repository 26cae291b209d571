"""Train the demo model from a seed and check it on held-out pictures: ``python -m gradcam_kit.demo.train``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from gradcam_kit.demo.data import HELD_OUT, PICTURES, SIZES, Sample, collate, draw, write_sample_pictures
from gradcam_kit.demo.network import CHECKPOINT, DemoNet

_BATCH_SIZE = 64
# With mean pooling, small objects hardly affect the loss of a new model, so training starts with large objects.
_EASY_LESSONS = [("large",)] * 5 + [("large", "medium")] * 2


def draw_all(seeds: Sequence[int]) -> list[Sample]:
    """Draw the samples of the seeds on all processor cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(draw, seeds, chunksize=64))


def augment(images: Float[Tensor, "n 3 h w"], generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Rotate, mirror and recolor the images, so that only the shape distinguishes the classes."""
    turns, mirror = torch.randint(4, (2,), generator=generator).tolist()
    images = images.rot90(turns, (2, 3)).flip([3] if mirror % 2 else [])
    images = images[:, torch.randperm(3, generator=generator)]
    contrast = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1, generator=generator)
    cast = 0.3 * torch.randn(len(images), 3, 1, 1, generator=generator)
    return images * contrast + cast


def train(samples: Sequence[Sample], *, epochs: int, seed: int) -> DemoNet:
    """Train a new model from labels only, without masks."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DemoNet().to(memory_format=torch.channels_last)
    lessons = [[sample for sample in samples if sample.size in sizes] for sizes in [*_EASY_LESSONS, *[SIZES] * epochs]]
    steps = [len(lesson) // _BATCH_SIZE for lesson in lessons]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=sum(steps))
    for number, (lesson, batches) in enumerate(zip(lessons, steps, strict=True), start=1):
        order = torch.randperm(len(lesson), generator=generator)[: batches * _BATCH_SIZE].view(batches, _BATCH_SIZE)
        losses = []
        for rows in order.tolist():
            images, labels, _ = collate([lesson[row] for row in rows])
            images = augment(images, generator).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"lesson {number}/{len(lessons)}: {len(lesson)} pictures, loss {np.mean(losses):.3f}", flush=True)
    return model.eval()


def accuracies(model: DemoNet, samples: Sequence[Sample]) -> dict[str, float]:
    """Return the share of correct predictions, overall and by size."""
    with torch.inference_mode():
        right = np.array([model(collate([sample]).images).argmax().item() == sample.label for sample in samples])
    sizes = np.array([sample.size for sample in samples])
    return {"all": float(right.mean())} | {size: float(right[sizes == size].mean()) for size in SIZES}


def save_checkpoint(model: DemoNet, path: Path) -> None:
    """Write the model in float16, and round the model likewise, so that the check applies to the stored weights."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and check the demo model, and write its checkpoint and the sample pictures."""
    parser = argparse.ArgumentParser(prog="python -m gradcam_kit.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="checkpoint to write (default: the bundled one)")
    parser.add_argument(
        "--pictures", type=Path, default=PICTURES, help="folder for the sample pictures (default: the bundled one)"
    )
    parser.add_argument("--samples", type=int, default=12_000, help="training pictures (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=3_000, help="pictures to check on (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=8, help="epochs over all pictures, after the easy epochs (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, order and augmentation (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    model = train(draw_all(range(options.samples)), epochs=options.epochs, seed=options.seed)
    save_checkpoint(model, options.out)
    for name, accuracy in accuracies(model, draw_all(range(HELD_OUT, HELD_OUT + options.held_out))).items():
        print(f"held-out accuracy, {name}: {accuracy:.4f}")
    write_sample_pictures(options.pictures)


if __name__ == "__main__":
    main()
