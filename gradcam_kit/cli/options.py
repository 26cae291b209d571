"""The options that several commands share, and their parsers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradcam_kit.cli import completing
from gradcam_kit.errors import OptionError

# Titles of the panels in the help.
MODEL = "Model"
DATA = "Data"
EXPLAIN = "What to explain"
COMPUTE = "Computing"
OUTPUT = "Output"
SERVE = "Page"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="SPEC",
        help="demo, mobilenet-v2, torchvision:NAME, timm:NAME, hf:NAME or package.module:factory; see "
        "'gradcam-kit models'.",
        rich_help_panel=MODEL,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File of weights: safetensors, or a PyTorch file of tensors.", rich_help_panel=MODEL
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Pretrained weights by name, such as DEFAULT or IMAGENET1K_V2.",
        show_default="random weights",
        rich_help_panel=MODEL,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Height and width of the model's input.",
        show_default="from the model",
        rich_help_panel=MODEL,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Mean per channel in [0, 1], such as 0.485,0.456,0.406, or one number for gray.",
        show_default="from the model",
        rich_help_panel=MODEL,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Standard deviation per channel in [0, 1].",
        show_default="from the model",
        rich_help_panel=MODEL,
    ),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with one class name per line.",
        show_default="from the model",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Device such as cpu, cuda:1 or mps.", show_default="CUDA, else the CPU", rich_help_panel=COMPUTE),
]
Devices = Annotated[
    str | None,
    typer.Option(
        help="Device such as cpu, cuda:1 or mps, or several: cuda:0,cuda:1.",
        show_default="all GPUs, else the CPU",
        rich_help_panel=COMPUTE,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16 or float16.",
        autocompletion=completing.one_of("float32", "bfloat16", "float16"),
        rich_help_panel=COMPUTE,
    ),
]
Targets = Annotated[
    str,
    typer.Option(
        help="predicted, label (the picture's folder), a class index, a class name, or top:K.",
        autocompletion=completing.one_of("predicted", "label"),
        rich_help_panel=EXPLAIN,
    ),
]
Scores = Annotated[
    str | None,
    typer.Option(
        help="Score of a class: softmax, sigmoid, or raw (the unchanged output).",
        autocompletion=completing.one_of("softmax", "sigmoid", "raw"),
        show_default="the model decides",
        rich_help_panel=EXPLAIN,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the model around the target layers (slow start, faster passes).",
        rich_help_panel=COMPUTE,
    ),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try failed pictures again.", rich_help_panel=OUTPUT)]
BatchSize = Annotated[int, typer.Option(help="Maximum number of images in one forward pass.", rich_help_panel=COMPUTE)]
Workers = Annotated[
    int,
    typer.Option(help="Number of workers that decode pictures (0 = one per core, at most 8).", rich_help_panel=COMPUTE),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Metric (see 'gradcam-kit metrics'). Can be repeated.",
        autocompletion=completing.metrics,
        rich_help_panel=EXPLAIN,
    ),
]
MaskFolder = Annotated[
    str | None,
    typer.Option(
        "--masks",
        metavar="FOLDER",
        help="Folder of masks, 0 outside the objects, for metrics that compare heatmaps with objects.",
        rich_help_panel=EXPLAIN,
    ),
]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="The folder of a run.")]
ModelOfRun = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="SPEC",
        help="Model of the run, required if it is package.module:factory: code named in DIR is never imported.",
        show_default="as in the run",
        rich_help_panel=MODEL,
    ),
]
MethodOfRun = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Method of the run, needed if it is package.module:Class. Can be repeated.",
        autocompletion=completing.methods,
        show_default="all of the run",
        rich_help_panel=EXPLAIN,
    ),
]
ReplaceForeign = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that this command did not write.", rich_help_panel=OUTPUT)
]
Open = Annotated[
    bool,
    typer.Option("--open", help="Open the result in the browser, if one is available.", rich_help_panel=OUTPUT),
]
Method = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Method (see 'gradcam-kit methods'), such as balanced-cam for vision transformers. Can be repeated.",
        autocompletion=completing.methods,
        show_default="grad-cam",
        rich_help_panel=EXPLAIN,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Method (see 'gradcam-kit methods'), such as balanced-cam for vision transformers. Can be repeated.",
        autocompletion=completing.methods,
        show_default="all that apply",
        rich_help_panel=EXPLAIN,
    ),
]
Layer = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "-l",
        metavar="NAME",
        help="Target layer (see 'gradcam-kit layers'). Can be repeated.",
        show_default="chosen by running the model",
        rich_help_panel=EXPLAIN,
    ),
]
ComparedLayer = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "-l",
        metavar="NAME",
        help="Layer to compare at; A+B fuses the maps of two layers. Can be repeated.",
        show_default="chosen by running the model",
        rich_help_panel=EXPLAIN,
    ),
]
OutFolder = Annotated[
    str,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        help="Folder of the run. Run the same command again to resume.",
        rich_help_panel=OUTPUT,
    ),
]
ExportFormat = Annotated[
    str,
    typer.Option(
        "--to",
        help="fiftyone, coco, png, npz or csv.",
        autocompletion=completing.one_of("fiftyone", "coco", "png", "npz", "csv"),
        rich_help_panel=OUTPUT,
    ),
]
GradientRule = Annotated[
    str,
    typer.Option(
        help="exact, as in the papers, or balanced: normalizations, gates and attention are constant factors.",
        autocompletion=completing.one_of("exact", "balanced"),
        rich_help_panel=EXPLAIN,
    ),
]


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Parse numbers that are separated by commas.

    Raises:
        OptionError: the text is not a list of numbers.
    """
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise OptionError(f"{option} is {text!r}; expected numbers such as 0.485,0.456,0.406") from None


def overlay_count(text: str) -> int | None:
    """Parse the number of pictures that get overlays; None = all pictures.

    Raises:
        OptionError: the text is not `all`, `none` or a number.
    """
    if text in ("all", "none"):
        return None if text == "all" else 0
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"--overlays is {text!r}; expected all, none or a number of pictures") from None
