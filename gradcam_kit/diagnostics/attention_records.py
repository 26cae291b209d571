"""Captured attention: one record for each call of a layer, and the table of heads."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from gradcam_kit.diagnostics.maths.heads import attention_entropy
from gradcam_kit.diagnostics.verdicts.heads import HeadRow


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The attention of one call of a layer.

    Attributes:
        step: number of the model's call in which the layer ran, counted from 1.
        probabilities: attention after the softmax, without dropout, in at least float32; for a window transformer,
            axis 0 holds windows instead of samples.
        output_norm: norm of `probabilities @ values` for each head and sample; None if it was not observed.
    """

    step: int
    probabilities: Float[Tensor, "n heads q k"]
    output_norm: Float[Tensor, "n heads"] | None


@dataclass(eq=False)
class LayerAttention:
    """The attention of one layer in all its calls; the properties are those of the last call.

    Attributes:
        name: dotted name of the module.
        calls: one record for each call, in the order of execution.
    """

    name: str
    calls: list[AttentionCall] = field(default_factory=list)

    @property
    def probabilities(self) -> Float[Tensor, "n heads q k"]:
        """Attention after the softmax in the last call."""
        return self.calls[-1].probabilities

    @property
    def entropy(self) -> Float[Tensor, "n heads"]:
        """Entropy of each head in the last call: 0 if it attends to one key, 1 if to all keys equally."""
        return attention_entropy(self.probabilities)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, heads, q, k)` of the last call."""
        return tuple(self.probabilities.shape)

    def pooled(self) -> tuple[Tensor, Tensor | None]:
        """Concatenate attention and output norms of all calls with as many heads, queries and keys as the last call.

        The norms are None unless they were observed in all of these calls.
        """
        same = [call for call in self.calls if call.probabilities.shape[1:] == self.probabilities.shape[1:]]
        norms = [call.output_norm for call in same if call.output_norm is not None]
        probabilities = torch.cat([call.probabilities for call in same])
        return probabilities, torch.cat(norms) if len(norms) == len(same) else None


class HeadTable(tuple[HeadRow, ...]):
    """One row for each head, shown as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        lines = [f"{'layer':<40} head  entropy  nearest  distance   sink  flags"]
        for row in self:
            near = "-" if row.nearest is None else f"{row.nearest}"
            distance = "-" if row.distance is None else f"{row.distance:.3f}"
            lines.append(
                f"{row.layer:<40} {row.head:>4}  {row.entropy:>7.3f}  {near:>7}  {distance:>8}  {row.sink:>5.2f}  "
                f"{', '.join(row.flags)}"
            )
        return "\n".join(line.rstrip() for line in lines)
