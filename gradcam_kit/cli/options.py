"""The options that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradcam_kit.errors import OptionError

Model = Annotated[
    str, typer.Option(help="demo, mobilenet-v2, torchvision:NAME, timm:NAME, hf:NAME or package.module:factory.")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: safetensors, or a PyTorch file of tensors.")]
Weights = Annotated[str | None, typer.Option(help="Pretrained weights by name, such as DEFAULT or IMAGENET1K_V2.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the model's input, in pixels.")]
Mean = Annotated[
    str | None, typer.Option(help="Mean per channel in [0, 1], such as 0.485,0.456,0.406, or one number for gray.")
]
Std = Annotated[str | None, typer.Option(help="Standard deviation per channel in [0, 1].")]
ClassNames = Annotated[Path | None, typer.Option(help="File with one class name per line.")]
Device = Annotated[str | None, typer.Option(help="Device such as cpu, cuda:1 or mps. By default CUDA, else the CPU.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Targets = Annotated[
    str, typer.Option(help="predicted, label (the picture's folder), a class index, a class name, or top:K.")
]
Scores = Annotated[
    str | None,
    typer.Option(
        help="Score of a class: softmax, sigmoid, or raw (the output as it is). By default the model decides."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the model around the target layers (slow start, faster passes).")
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try failed pictures again.")]
BatchSize = Annotated[int, typer.Option(help="Largest number of images in one forward pass.")]
Workers = Annotated[int, typer.Option(help="Workers that decode pictures (0 = all cores, at most 8).")]
Metrics = Annotated[list[str] | None, typer.Option(help="Metric, see 'gradcam-kit metrics'. Can be repeated.")]
MaskFolder = Annotated[
    str | None,
    typer.Option(
        "--masks", help="Folder of masks, 0 outside the objects, for metrics that compare heatmaps with objects."
    ),
]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="The folder of a run.")]
ModelOfRun = Annotated[
    str | None,
    typer.Option("--model", help="Model of the run, needed if it is package.module:factory, because DIR is only data."),
]
MethodOfRun = Annotated[
    list[str] | None,
    typer.Option("--method", help="Method of the run, needed if it is package.module:Class. Can be repeated."),
]
ReplaceForeign = Annotated[bool, typer.Option("--overwrite", help="Replace files that this command did not write.")]
Method = Annotated[
    list[str] | None,
    typer.Option(help="Method, see 'gradcam-kit methods'; balanced-cam for vision transformers. Can be repeated."),
]
GradientRule = Annotated[
    str,
    typer.Option(
        help="exact, as in the papers, or balanced: normalizations, gates and attention count as constant factors."
    ),
]
Layer = Annotated[list[str] | None, typer.Option(help="Target layer; by default one is chosen. Can be repeated.")]


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read numbers between commas.

    Raises:
        OptionError: anything else.
    """
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise OptionError(f"{option} is {text!r}; expected numbers such as 0.485,0.456,0.406") from None


def overlay_count(text: str) -> int | None:
    """Read how many pictures get overlays; None = all.

    Raises:
        OptionError: anything else.
    """
    if text in ("all", "none"):
        return None if text == "all" else 0
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"--overlays is {text!r}; expected all, none or a number of pictures") from None
