"""Capture the attention of transformers while the user runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from gradcam_kit.capture import SeenHeads, check_observable, select_layers, watch_attention
from gradcam_kit.diagnostics.attention_records import AttentionCall, LayerAttention
from gradcam_kit.diagnostics.captured_attention import CapturedAttention
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.errors import CaptureError, InputError, MemoryLimitError, OptionError, kind_of
from gradcam_kit.options import one_of, whole

_LOOKED_FOR = (
    "a softmax over the last axis that a matrix product uses as weights, scaled_dot_product_attention, and "
    "nn.MultiheadAttention"
)


@contextmanager
def capture_attention(
    model: Any,
    tokens: Any = None,
    *,
    layers: Any = None,
    keep: str = "device",
    max_bytes: int = 2**30,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - immutable
) -> Iterator[CapturedAttention]:
    """Capture the attention of every head while the model runs, including that of PyTorch's fused kernels.

    Works for `nn.MultiheadAttention`, timm, torchvision, Hugging Face, open_clip and hand-written attention, in any
    mode, but not for the kernels of flash-attn, xformers and flex attention. A fused kernel still computes the output,
    and its attention is computed separately, so outputs, gradients and random numbers are the same to the last bit. The
    exception is the fast path of `nn.TransformerEncoder` in eval mode
    without gradients, which exposes no attention. This path is disabled inside the block, and `.notes` says so.

    Args:
        model: any model, called any number of times.
        tokens: the words of a text, special tokens included, or one sequence of words for each sample; None = tokens
            are labeled with their indices.
        layers: keep only the attention of these modules and of the modules inside them: a dotted name, a wildcard, a
            module, a type, or a sequence of these; None = all.
        keep: "device" keeps attention on the device that computed it, "cpu" moves it to the host.
        max_bytes: maximum memory for captured attention, in bytes.
        thresholds: limits of the findings.

    Yields:
        A mapping: `attention[name].probabilities` is `(n, heads, q, k)`, after the softmax and without dropout.

    Raises:
        CaptureError: the model did not run inside the block, or no attention was found in the selected layers.
        LayerNotFoundError: a pattern in `layers` that matches no module.
        MemoryLimitError: the attention would exceed `max_bytes`; raised by the call of the model.
        InputError: `tokens` is not a sequence of words or of such sequences.
        OptionError: `keep` is unknown, or `max_bytes` is negative.

    Example:
        >>> import torch
        >>> model = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.randn(1, 5, 8)
        >>> with capture_attention(model, tokens="I like it very much".split()) as attention:
        ...     _ = model(x, x, x)
        >>> attention["MultiheadAttention"].probabilities.shape
        torch.Size([1, 2, 5, 5])
    """
    one_of("keep", keep, ("device", "cpu"))
    if whole("max_bytes", max_bytes) < 0:
        raise OptionError(f"max_bytes is {max_bytes}; expected at least 0 bytes")
    inner = check_observable(model)
    selected = None if layers is None else set(select_layers(inner, layers, model))
    captured = CapturedAttention(_read_tokens(tokens), thresholds)
    recorder = _Recorder(captured, selected, keep, max_bytes)
    with watch_attention(model, recorder.keep_heads) as watch:
        yield captured
    captured.skipped.update(watch.skipped)
    captured.notes = (*watch.notes, *recorder.notes)
    captured.grids = {own.name: watch.grid(own.shape[0], own.shape[-1]) for own in captured.values()}
    if not captured.layers:
        raise CaptureError(_nothing(type(inner).__name__, watch.steps, selected, captured.skipped, recorder.seen))


def _nothing(model: str, steps: int, selected: set[str] | None, skipped: dict[str, str], seen: int) -> str:
    if not steps and not seen:
        return (
            f"no attention was captured, because {model} did not run inside the block; call the model inside the "
            "`with` block"
        )
    if seen:
        return f"there is no attention in {', '.join(sorted(selected or ()))}; pass layers=None to keep all attention"
    found = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3]) or "no softmax at all"
    return (
        f"no attention found in {model}: looked for {_LOOKED_FOR}, and saw {found}. Kernels of flash-attn, xformers "
        "and flex attention hide their weights: load the model with scaled_dot_product_attention or explicit attention "
        '(attn_implementation="eager" in transformers)'
    )


class _Recorder:
    """Keeps the attention of the selected layers, up to `max_bytes`."""

    def __init__(self, captured: CapturedAttention, selected: set[str] | None, keep: str, max_bytes: int) -> None:
        self.captured, self.selected, self.keep, self.max_bytes = captured, selected, keep, max_bytes
        self.bytes, self.seen, self.notes = 0, 0, list[str]()

    def keep_heads(self, one: SeenHeads) -> None:
        self.seen += 1
        if self.selected is not None and self.selected.isdisjoint((one.name, *one.around)):
            return
        probabilities = one.probabilities
        self.bytes += probabilities.numel() * probabilities.element_size()
        if self.bytes > self.max_bytes:
            raise MemoryLimitError(
                f"the attention of {one.name!r} {tuple(probabilities.shape)} would increase the kept memory to "
                f"{self.bytes / 2**20:.4g} MiB, over max_bytes={self.max_bytes / 2**20:.4g} MiB; select fewer "
                "layers with layers=, call the model with fewer samples, or raise max_bytes"
            )
        norm = one.output_norm
        if self.keep == "cpu":
            probabilities, norm = probabilities.cpu(), None if norm is None else norm.cpu()
        call = AttentionCall(one.step, probabilities, norm)
        layer = self.captured.layers.setdefault(one.name, LayerAttention(one.name))
        layer.calls.append(call)
        self.captured.order.append((one.name, call))


def _read_tokens(tokens: Any) -> tuple[tuple[str, ...], ...] | None:
    """Return the words of each sample; a single sequence of words applies to all samples."""
    if tokens is None:
        return None
    if isinstance(tokens, str | bytes | Tensor) or not isinstance(tokens, Sequence):
        raise InputError(
            f"tokens is {kind_of(tokens)}; expected a sequence of words, one for each token, or one sequence for each "
            "sample, such as the result of tokenizer.convert_ids_to_tokens(ids)"
        )
    nested = [tokens] if all(isinstance(own, str) for own in tokens) else list(tokens)
    for own in nested:
        if isinstance(own, str) or not isinstance(own, Sequence) or not all(isinstance(word, str) for word in own):
            raise InputError(f"tokens contains {kind_of(own)}; expected words, or one sequence of words per sample")
    return tuple(tuple(own) for own in nested)
