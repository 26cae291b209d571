"""The only package that hooks or changes a user's model: captures, target layers, layouts, and further passes."""

from gradcam_kit.capture.attaching import Hooks, holding_hooks
from gradcam_kit.capture.attention.watching import SeenHeads, TokenGrid, watch_attention
from gradcam_kit.capture.deferred_checks import on_host
from gradcam_kit.capture.gradients.output_graph import output_with_graph, score_kind
from gradcam_kit.capture.gradients.tower import TowerPass, tower_pass
from gradcam_kit.capture.images.channels import read_inputs, with_channels
from gradcam_kit.capture.images.choice import image_input_of
from gradcam_kit.capture.images.positions import heatmap_size
from gradcam_kit.capture.layer_choice import choose_among, choose_layers, layer_candidates
from gradcam_kit.capture.model.compiled import compile_around
from gradcam_kit.capture.model.inputs import Inputs, Runner
from gradcam_kit.capture.model.layers import TargetLayers, find_layers, select_layers, split_name
from gradcam_kit.capture.model.memory_format import in_fastest_format
from gradcam_kit.capture.model.randomization import randomizing
from gradcam_kit.capture.model.state import check_model, untouched
from gradcam_kit.capture.model.trees import map_output
from gradcam_kit.capture.observable import (
    check_observable,
    computes_relu,
    in_backward,
    unobservable,
)
from gradcam_kit.capture.observing import Call, Observation, Observer, observe
from gradcam_kit.capture.passes import Request, capture
from gradcam_kit.capture.recorders.frames import Folded, frame_layout
from gradcam_kit.capture.recorders.graph_layers import GraphCall, run_graph
from gradcam_kit.capture.recorders.recurrent import (
    RecurrentCall,
    check_called,
    passing,
    recurrent_layers,
    run_recurrent,
    weights_version,
)
from gradcam_kit.capture.rerun.counting import counting_rows
from gradcam_kit.capture.rerun.rescore import in_half_precision, rows_at_once
from gradcam_kit.capture.rerun.session import IsPrediction, Rescoring, rescoring
from gradcam_kit.capture.results import Capture
from gradcam_kit.capture.shards import Shard, flat_shards, is_spread, local_part, shard_of
from gradcam_kit.capture.texts import with_texts
from gradcam_kit.targets.classes import (
    ClassLogit,
    ClassProbability,
    ClassTarget,
    resolve_target,
)
from gradcam_kit.targets.contrastive import FinerTarget

__all__ = [
    "Call",
    "Capture",
    "ClassLogit",
    "ClassProbability",
    "ClassTarget",
    "FinerTarget",
    "Folded",
    "GraphCall",
    "Hooks",
    "Inputs",
    "IsPrediction",
    "Observation",
    "Observer",
    "RecurrentCall",
    "Request",
    "Rescoring",
    "Runner",
    "SeenHeads",
    "Shard",
    "TargetLayers",
    "TokenGrid",
    "TowerPass",
    "capture",
    "check_called",
    "check_model",
    "check_observable",
    "choose_among",
    "choose_layers",
    "compile_around",
    "computes_relu",
    "counting_rows",
    "find_layers",
    "flat_shards",
    "frame_layout",
    "heatmap_size",
    "holding_hooks",
    "image_input_of",
    "in_backward",
    "in_fastest_format",
    "in_half_precision",
    "is_spread",
    "layer_candidates",
    "local_part",
    "map_output",
    "observe",
    "on_host",
    "output_with_graph",
    "passing",
    "randomizing",
    "read_inputs",
    "recurrent_layers",
    "rescoring",
    "resolve_target",
    "rows_at_once",
    "run_graph",
    "run_recurrent",
    "score_kind",
    "select_layers",
    "shard_of",
    "split_name",
    "tower_pass",
    "unobservable",
    "untouched",
    "watch_attention",
    "weights_version",
    "with_channels",
    "with_texts",
]
