"""The best existing tool for each capability, and what this package adds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Anchored:
    """A capability and the best existing tool for it.

    Attributes:
        name: the capability in the words of a user.
        call: our functions or classes for it.
        anchor: the best existing tool.
        adds: what our function does that the tool does not.
        work: name of the work in `benchmarks capabilities`; "" if there is nothing to measure.
        test: the file with the tests of the capability.
    """

    name: str
    call: str
    anchor: str
    adds: str
    work: str
    test: str


_D = "tests/diagnostics/"
ANCHORS = (
    Anchored(
        "Compare two models", "compare_models", "pytorch-cka (minibatch CKA)",
        "also findings if a model is compared with itself: layers that change nothing, and collapsed features",
        "compare_models, 5 layers", f"{_D}test_compare_models.py",
    ),
    Anchored(
        "Compare two data sets", "compare_data", "Alibi Detect (MMD drift on one hidden layer)",
        "all layers in one pass over each set, p-values corrected for the number of layers, the units that shift",
        "compare_data, 5 layers, 2 x 32 images", f"{_D}test_compare_data.py",
    ),
    Anchored(
        "Rank units for pruning", "layer_importance", "Torch-Pruning (which also removes them)",
        "ablation, scored by the rest of the model, as the truth, and how well cheap scores agree with it",
        "layer_importance, taylor, layer4", f"{_D}test_layer_importance.py",
    ),
    Anchored(
        "What is confused, and why", "analyze_mistakes", "a confusion matrix, and heatmaps one by one",
        "mean heatmaps of each confused pair and of its two classes, with examples, from one pass per batch",
        "analyze_mistakes, Grad-CAM", "tests/comparison/test_confusions.py",
    ),
    Anchored(
        "See attention", "capture_attention", "BertViz; timm's AttentionExtract",
        "keeps fused kernels, outputs equal to the last bit; images and texts; findings about sinks and repeated heads",
        "capture_attention, 6 layers of 3 heads", f"{_D}test_capture_attention.py",
    ),
    Anchored(
        "Gates of recurrent layers", "trace_recurrent", "a cell written by hand",
        "every layer and direction, packed sequences, projections; checked against the module's own output",
        "trace_recurrent, 2 layers", f"{_D}test_trace_recurrent.py",
    ),
    Anchored(
        "Frames of a clip", "temporal_cam", "Grad-CAM on the CNN, frame by frame",
        "the share of each frame in the score, through the recurrent layer or attention after the CNN",
        "temporal_cam", "tests/methods/test_temporal_cam.py",
    ),
    Anchored(
        "Embeddings", "project", "scikit-learn; TensorBoard's projector",
        "the silhouette of the embeddings themselves, in addition to the plot",
        "project, tsne, 200 x 64", f"{_D}test_project.py",
    ),
    Anchored(
        "Attention of graphs", "graph_attention", "torch_geometric's AttentionExplainer",
        "every layer and head by itself instead of one mask, and the edges as the layer used them",
        "graph_attention", f"{_D}test_graph_attention.py",
    ),
    Anchored(
        "Picture and text", "two_tower_cam", "Grad-CAM on the image tower of CLIP",
        "the image's map and the tokens' weights in one call, for any pair of towers, also through a fusion module",
        "two_tower_cam", "tests/methods/test_two_tower_cam.py",
    ),
    Anchored(
        "Levels of a detector", "pyramid_levels", "TIDE (errors of the boxes)",
        "which level carries each box, and levels that never carry any",
        "pyramid_levels, SSDlite", f"{_D}test_pyramid_levels.py",
    ),
    Anchored(
        "Log a training", "JsonWriter, CsvWriter, TensorBoardWriter, MLflowWriter, WandbWriter", "wandb.watch",
        "NaN is counted, not dropped; one interface for five destinations; a writer that fails never ends a training",
        "TensorBoardWriter, a window of 60 layers", f"{_D}test_writers.py",
    ),
    Anchored(
        "Callbacks", "watch_loop, DiagnosticsCallback, DiagnosticsTrainerCallback", "Lightning's DeviceStatsMonitor",
        "findings about the model, not the device; merges all ranks; reports also after an error",
        "", f"{_D}test_callbacks.py",
    ),
    Anchored(
        "A film of what is learned", "HeatmapLogger", "a loop written by hand",
        "the same images through a whole training, as GIF or MP4, without an effect on the run",
        "HeatmapLogger, one frame", "tests/comparison/test_film.py",
    ),
    Anchored(
        "Watch it live", "dashboard", "TensorBoard",
        "findings first; reads a plain file; listens only on the loopback address",
        "", f"{_D}test_dashboard.py",
    ),
)  # fmt: skip
