"""The origin of the first non-finite value: the records of `find_nonfinite`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from gradcam_kit.capture import local_part
from gradcam_kit.diagnostics.magnitudes import Seen

OUTSIDE = "outside of any module: the loss"
_SHOWN = 5


@dataclass(frozen=True)
class Origin:
    """The origin of the first NaN or infinity.

    Attributes:
        layer: dotted name of the module; "" for the whole model and for anything outside the modules.
        kind: "nan" or "inf".
        phase: "forward" or "backward".
        cause: "input", "parameter NAME", "buffer NAME", "computed here" or "outside of any module: the loss".
        path: name of the tensor, such as `layer[0]` for an output, or a description of the gradient.
        count: number of non-finite values in the tensor.
        sample: the first sample of the batch with such a value; None if samples cannot be distinguished.
        trail: the modules that ran last, with the largest magnitudes of their inputs and outputs or, in the backward
            pass, of the gradients that arrived and were passed on; they reveal an overflow in advance.
        operator: the operator that produced the value, such as "div"; in the backward pass the autograd node, such as
            "SqrtBackward0"; "" if unknown. In the forward pass, it is known only with `find_nonfinite(detail=True)`.
        line: file, line and code that called the operator, known only in the forward pass and with
            `find_nonfinite(detail=True)`; else "".
    """

    layer: str
    kind: str
    phase: str
    cause: str
    path: str
    count: int
    sample: int | None
    trail: tuple[Seen, ...] = field(default=(), repr=False)
    operator: str = ""
    line: str = ""

    def __str__(self) -> str:
        where = f"layer {self.layer!r}" if self.layer else "the model itself" if self.cause != OUTSIDE else OUTSIDE
        cause = "" if self.cause == OUTSIDE else f" ({self.cause})"
        sample = "" if self.sample is None else f", first in sample {self.sample}"
        steps = "; ".join(map(str, self.trail[-_SHOWN:]))
        before = f". Before it: {steps}" if steps else ""
        value = "NaN" if self.kind == "nan" else "infinity"
        found = f"{self.count:,} non-finite value{'s' if self.count != 1 else ''} in {self.path}{sample}"
        made = f", by {self.operator}{f' in {self.line}' if self.line else ''}" if self.operator else ""
        return f"first {value} in the {self.phase} pass: {where}{cause}{made}, {found}{before}"


class Origins:
    """The result of `find_nonfinite`; true if a NaN or infinity was found.

    Attributes:
        forward: the origin in the forward pass; None if all values were finite.
        backward: the origin in the backward pass; None if all gradients were finite or harmless.
        notes: remarks on what was not observed, and on harmless gradients.
    """

    def __init__(self) -> None:
        self.forward: Origin | None = None
        self.backward: Origin | None = None
        self.notes: list[str] = []

    def __bool__(self) -> bool:
        return self.forward is not None or self.backward is not None

    def __str__(self) -> str:
        found = [str(origin) for origin in (self.forward, self.backward) if origin is not None]
        return (
            "\n".join(found)
            or "all values of the modules and all gradients were finite; the value of the loss is not observed"
        )


def origin_of(
    layer: str, phase: str, cause: str, path: str, tensor: Tensor, trail: Sequence[Seen], operator: str = ""
) -> Origin:
    """Return the origin, with the kind, the number and the first sample of the non-finite values of `tensor`."""
    tensor = local_part(tensor.detach())
    bad = ~tensor.isfinite()
    rows = bad.flatten(1).any(1) if bad.ndim > 1 else bad
    first = int(rows.nonzero()[0]) if rows.ndim == 1 and bool(rows.any()) else None
    kind = "nan" if bool(tensor.isnan().any()) else "inf"
    return Origin(layer, kind, phase, cause, path, int(bad.sum()), first, tuple(trail), operator)


def cause_of(module: nn.Module | None) -> str:
    """Return the kind and name of the first non-finite parameter or buffer of the module, else "computed here"."""
    if module is not None:
        for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
            for name, tensor in named:
                if tensor.is_floating_point() and not bool(local_part(tensor.detach()).isfinite().all()):
                    return f"{kind} {name}"
    return "computed here"
