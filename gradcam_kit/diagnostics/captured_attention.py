"""The attention captured in a block, by layer, with its findings, plots, texts and HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.capture import TokenGrid
from gradcam_kit.diagnostics.attention_records import AttentionCall, HeadTable, LayerAttention
from gradcam_kit.diagnostics.findings import Finding, worst_first
from gradcam_kit.diagnostics.maths.heads import attention_received
from gradcam_kit.diagnostics.thresholds import Thresholds
from gradcam_kit.diagnostics.verdicts.heads import HeadRow, LayerHeads, judge
from gradcam_kit.errors import CaptureError, OptionError, ShapeError, UnknownNameError, did_you_mean
from gradcam_kit.functional import HeadFusion, rollout_step
from gradcam_kit.options import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CapturedAttention(Mapping[str, LayerAttention]):
    """Attention by module name, in the order in which the modules first ran.

    The name of a module that contains exactly one attention layer, such as a transformer block, also works as a key.

    Attributes:
        tokens: the words of each sample, or None.
        skipped: module -> why one of its softmaxes is not attention.
        notes: remarks on what the model does differently inside the block.
        order: the module and the record of every call, in the order of execution.
        grids: module -> how image patches lie among its keys; None if they form no grid, or several are possible.
    """

    def __init__(self, tokens: tuple[tuple[str, ...], ...] | None, thresholds: Thresholds) -> None:
        self.tokens, self.thresholds = tokens, thresholds
        self.layers: dict[str, LayerAttention] = {}
        self.order: list[tuple[str, AttentionCall]] = []
        self.skipped: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()
        self.grids: dict[str, TokenGrid | None] = {}

    def __getitem__(self, name: str) -> LayerAttention:
        if name in self.layers:
            return self.layers[name]
        inside = [own for own in self.layers if own.startswith(f"{name}.")]
        if len(inside) == 1:
            return self.layers[inside[0]]
        if inside:
            raise UnknownNameError(
                f"{name!r} contains several attention layers: {', '.join(inside[:6])}; name one of them"
            )
        hint = did_you_mean(name, self.layers) or f"; attention was captured in {', '.join(list(self.layers)[:6])}"
        raise UnknownNameError(f"no attention of {name!r} was captured{hint}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {own.shape}" for name, own in list(self.items())[:8])
        return f"CapturedAttention({shown}{', ...' * (len(self) > 8)})"

    @property
    def entropy(self) -> dict[str, Float[Tensor, "n heads"]]:
        """Entropy of each head by module, `(n, heads)`: 0 if it attends to one key, 1 if to all keys equally."""
        return {name: layer.entropy for name, layer in self.items()}

    def heads(self) -> HeadTable:
        """Return one row for each head: entropy, nearest head, sink, and flags."""
        return HeadTable(row for rows, _ in self._judged() for row in rows)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return findings about heads that repeat each other, attend to one token, or contribute nothing."""
        return tuple(worst_first(finding for _, findings in self._judged() for finding in findings))

    def _judged(self) -> Iterator[tuple[list[HeadRow], list[Finding]]]:
        for name, layer in self.items():
            probabilities, norms = layer.pooled()
            grid = self.grids.get(name)
            yield judge(
                LayerHeads(name, probabilities, norms, self.tokens, grid is not None and grid.has_class_token),
                self.thresholds,
            )

    def rollout(
        self, heads: HeadFusion = "mean", discard: float = 0.0, *, layers: Sequence[str] | None = None
    ) -> Float[Tensor, "n t t"]:
        r"""Compute the attention rollout through all layers of the last call: $\hat A_L \cdots \hat A_1$.

        $\hat A$ is the fused attention of a layer plus the identity (the residual branch), with rows scaled to sum to
        1. Row i of the result holds the weights of the input tokens in output token i. Abnar & Zuidema, ACL 2020.
        Layers whose queries and keys are different tokens (cross-attention, pooling) are left out.

        Args:
            heads: how the heads of a layer are fused: "mean", "max" or "min".
            discard: share of the entries of each fused attention map to set to zero, the smallest first, in [0, 1).
            layers: names of the layers, from the first to the last; None = all, in the order of execution.

        Raises:
            CaptureError: no self-attention layer, layers with different numbers of tokens, or layers of two parts of
                the model, such as encoder and decoder.
            OptionError: `discard` outside [0, 1).
        """
        if not 0 <= discard < 1:
            raise OptionError(f"discard is {discard!r}; expected a share of at least 0 and less than 1")
        last = self.order[-1][1].step
        chosen = [(name, call.probabilities) for name, call in self.order if call.step == last]
        if layers is not None:
            chosen = [(name, self[name].probabilities) for name in layers]
        named = [(name, own) for name, own in chosen if own.shape[-1] == own.shape[-2]]
        square = [own for _, own in named]
        shapes = sorted({(own.shape[0], own.shape[-1]) for own in square})
        if len(shapes) != 1:
            found = (
                " and ".join(f"{tokens} tokens (samples or windows: {n})" for n, tokens in shapes)
                or "no self-attention"
            )
            raise CaptureError(
                f"rollout needs the same tokens in all layers, but these layers have {found}; name the layers of one "
                "stage or encoder with layers="
            )
        kinds = {re.sub(r"\d+", "#", name): name for name, _ in named}
        if layers is None and len(kinds) > 1:  # encoder and decoder may have the same number of tokens
            raise CaptureError(
                "rollout needs the same tokens in all layers, but it is unclear whether these layers "
                f"have the same tokens: {' and '.join(kinds.values())}; name the layers of one encoder with "
                "layers="
            )
        rolled: Tensor = rollout_step(square[0], heads, discard)
        for own in square[1:]:
            rolled = rollout_step(own, heads, discard) @ rolled
        return rolled

    def maps(
        self, name: str | None = None, *, query: int | None = None, grid: tuple[int, ...] | None = None
    ) -> Float[Tensor, "n heads *s"]:
        """Return the attention of each head to the image patches, on their grid.

        Args:
            name: the layer; None = the last one.
            query: index of the query token; None = the class token if there is one, else the mean over all tokens.
            grid: rows and columns of the patches; None = inferred from images and tokens.

        Returns:
            The attention to each patch. Tokens before the patches are left out, so the values need not sum to 1.

        Raises:
            ShapeError: the keys fit no grid of patches, or more than one; or `grid` has more patches than keys.
        """
        layer = self._layer(name)
        known = self.grids.get(layer.name)
        if grid is not None:
            prefix = layer.shape[-1] - torch.Size(grid).numel()
            if prefix < 0:
                raise ShapeError(
                    f"grid {grid} has more patches than {layer.name!r} has keys; expected at most {layer.shape[-1]}"
                )
            known = TokenGrid(tuple(grid), prefix, known.has_class_token if known else prefix > 0)
        if known is None:
            raise ShapeError(
                f"the {layer.shape[-1]} keys of {layer.name!r} fit no grid of image patches, or more than one; "
                "pass grid=(rows, columns), or use .text() for text"
            )
        if query is None and known.has_class_token:
            query = 0
        patches: Tensor = self.shares(name, query)[..., known.prefix :].unflatten(-1, known.grid)
        return patches

    def shares(self, name: str | None = None, query: int | None = None) -> Float[Tensor, "n heads k"]:
        """Return the attention to each key from one query; None = the mean over queries with at least two keys."""
        layer = self._layer(name)
        if query is None:
            return attention_received(layer.probabilities)
        if not -layer.shape[2] <= whole("query", query) < layer.shape[2]:
            raise OptionError(
                f"query is {query}; expected the index of one of the {layer.shape[2]} queries of {layer.name!r}"
            )
        return layer.probabilities[:, :, query]

    def plot(
        self, name: str | None = None, *, picture: Any = None, sample: int = 0, query: int | None = None
    ) -> Figure:
        """Plot the attention of each head of a layer: as a map if the keys form a grid, else as a matrix.

        Args:
            name: the layer; None = the last one.
            picture: the picture under the maps, in any form that `overlay` accepts; None = only the maps.
            sample: index of the sample in the batch.
            query: as in `maps`.

        Raises:
            ShapeError: a picture is given, but the keys do not form a grid of patches.
            MissingExtraError: matplotlib is not installed.
        """
        from gradcam_kit.diagnostics.show.attention import plot_heads

        return plot_heads(self, self._layer(name), picture, sample, query)

    def text(
        self,
        name: str | None = None,
        *,
        sample: int = 0,
        head: int | None = None,
        query: int | None = None,
        color: bool = False,
    ) -> str:
        """Return the words with their attention as text for the terminal.

        Args:
            name: the layer; None = the last one.
            sample: index of the sample in the batch.
            head: index of the head; None = the mean of all heads.
            query: index of the query token; None = the mean over all query tokens.
            color: shade the words with ANSI escape codes instead of adding a bar to each word.

        Raises:
            ShapeError: the number of words differs from the number of the layer's keys.
        """
        from gradcam_kit.diagnostics.show.attention import text

        return text(self, self._layer(name), sample, head, query, color)

    def to_html(self, path: str | Path | None = None, *, picture: Any = None, sample: int = 0) -> str:
        """Return a self-contained HTML page with findings, entropies, and the attention of every head.

        Args:
            path: also write the page to this file.
            picture: the picture under the maps, in any form that `overlay` accepts; None = only the maps.
            sample: index of the sample in the batch.
        """
        from gradcam_kit.diagnostics.show.attention_page import attention_page

        page = attention_page(self, picture, sample)
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def _repr_html_(self) -> str:
        return self.to_html()

    def words(self, layer: LayerAttention, sample: int) -> tuple[str, ...]:
        """Return a word for each key of a layer: the given words, else the indices of the keys."""
        n, _, _, keys = layer.shape
        if not -n <= whole("sample", sample) < n:
            raise OptionError(f"sample is {sample}; expected the index of one of the {n} samples of {layer.name!r}")
        if self.tokens is None:
            return tuple(map(str, range(keys)))
        own = self.tokens[sample % n % len(self.tokens)]
        if len(own) != keys:
            raise ShapeError(
                f"tokens has {len(own)} words, but {layer.name!r} has {keys} keys; pass one word for each token, "
                "special tokens and padding included"
            )
        return own

    def _layer(self, name: str | None) -> LayerAttention:
        if not self.order:
            raise CaptureError("no attention was captured yet; run the model inside the block")
        return self[name] if name is not None else self[self.order[-1][0]]
