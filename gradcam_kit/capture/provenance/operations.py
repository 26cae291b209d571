"""Group operations by what they do to places, which are the origins of values in the images."""

from __future__ import annotations

from typing import Any

import torch

RESHAPED = ("view", "_unsafe_view", "_reshape_alias", "reshape")
MOVED = (
    *("cat", "stack", "roll", "flip", "rot90", "repeat", "index", "index_select", "gather", "take_along_dim"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "im2col"),
    *("slice_scatter", "select_scatter", "scatter", "index_put", "masked_scatter", "masked_select"),
)
"""Operations that only move values, so that they can be applied to the row numbers of a tensor."""
WHERE = ("index", "indices", "mask")
"""Arguments of the operations in `MOVED` that determine where values move."""
FACTORS = ("self", "mat1", "batch1", "mat2", "batch2")
PADDED = tuple(f"{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3))

_BATCH_NORMS = (
    *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm_elemt", "batch_norm"),
    *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_no_update"),
    "_batch_norm_with_update",
)
_BY_VALUE = {
    *("alias", "clone", "contiguous", "copy", "detach", "lift", "lift_fresh", "lift_fresh_copy", "to", "_to_copy"),
    *("native_layer_norm", "native_group_norm", "rms_norm", "_fused_rms_norm", "renorm", *_BATCH_NORMS),
    *("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "_masked_softmax"),
    *("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "_fused_dropout"),
    *("bernoulli", "rrelu_with_noise", "hardswish", "prelu", "_prelu_kernel", "rsub", "floor_divide", "fill"),
    *("masked_fill", "where", "tril", "triu", "cumsum", "cumprod", "logcumsumexp", "bucketize", "searchsorted"),
    *("dequantize", "quantize_per_tensor", "quantize_per_channel", "fake_quantize_per_tensor_affine"),
    *("_transformer_encoder_layer_fwd", "_native_multi_head_attention"),
}
"""Operations that are treated as pointwise, although they lack the tag "pointwise"."""
_REDUCED = {
    *("sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "aminmax", "prod", "any", "all", "median"),
    *("nanmedian", "nansum", "mode", "kthvalue", "logsumexp", "norm", "linalg_vector_norm", "count_nonzero"),
    *("var", "std", "var_mean", "std_mean"),
}
"""Operations that reduce the axes in their argument `dim`, by default all axes."""


def is_ours(func: Any) -> bool:
    """Whether an operation belongs to torch itself, so that its name determines what it does."""
    return str(func.namespace) in ("aten", "prims")


def is_by_value(func: Any, name: str) -> bool:
    """Whether each result has the place of the arguments' values at the same position."""
    return is_ours(func) and (torch.Tag.pointwise in func.tags or name in _BY_VALUE)


def is_reduction(func: Any, name: str) -> bool:
    """Whether each result combines the values along one or several axes, as sums and means do."""
    return is_ours(func) and (name in _REDUCED or getattr(torch.Tag, "reduction", None) in func.tags)
