"""Convert changed maps back to a layer's own output, for any number of rows and any invertible `reshape`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.capture.layouts import Custom
from gradcam_kit.capture.recording import LayerRecord
from gradcam_kit.capture.rerun.lazy_rows import LazyRows
from gradcam_kit.errors import CaptureError, ShapeError, raise_interruption


def native_rows(
    record: LayerRecord, maps: Float[Tensor, "first k *s"], index: Int[Tensor, " m"], n: int
) -> tuple[int, Tensor]:
    """Return the index of the output tensor from which the maps come, and this tensor for the changed rows.

    Args:
        record: recorded output of the layer for n samples.
        maps: the changed maps, one per row. Tokens of an attention block are passed in the layer's own layout, where
            samples may be on the second axis.
        index: the sample of each row, from which prefix tokens are taken, because maps leave them out.
        n: number of samples.
    """
    assert record.layout is not None
    if not isinstance(record.layout, Custom):
        original = record.captured[0].detach()
        rows = record.layout.to_native(maps.to(original.device, original.dtype), LazyRows(original, index))
        return record.chosen[0], _owned(rows, original)
    if record.rearrangement is None:
        record.rearrangement = _trace(record, n)
    found: Rearrangement = record.rearrangement
    original = record.captured[found.tensor].detach()
    return record.chosen[found.tensor], found.to_native(maps.to(original.dtype), original, index, n)


def _owned(rows: Tensor, original: Tensor) -> Tensor:
    # Later in-place operations must not change the record.
    return rows.clone() if rows.untyped_storage().data_ptr() == original.untyped_storage().data_ptr() else rows


@dataclass(frozen=True)
class Rearrangement:
    """The positions from which `reshape` takes the values of the maps.

    Attributes:
        tensor: index of the tensor among the layer's captured tensors.
        axis: the sample axis of this tensor.
        interleaved: whether the entries of one sample on that axis are n apart instead of adjacent.
        places: indices of the values of a sample's maps among all values of the sample.
    """

    tensor: int
    axis: int
    interleaved: bool
    places: Int[Tensor, " values"]

    def to_native(self, maps: Float[Tensor, "m k *s"], original: Tensor, index: Int[Tensor, " m"], n: int) -> Tensor:
        """Put each value of the maps back to the position from which `reshape` took it."""
        own = _by_sample(original, self.axis, self.interleaved, n)[index.to(original.device)]
        values = own.flatten(1).scatter(1, self.places.expand(len(own), -1), maps.to(own.device).flatten(1))
        rows = values.view_as(own)
        joined = (rows.transpose(0, 1) if self.interleaved else rows).flatten(0, 1)
        native: Tensor = joined.movedim(0, self.axis)
        return native


def _by_sample(tensor: Tensor, axis: int, interleaved: bool, n: int) -> Tensor:
    """Return `(n, entries, ...)`: the entries of each sample on the sample axis, then all other axes."""
    apart: Tensor = tensor.movedim(axis, 0).unflatten(0, (-1, n) if interleaved else (n, -1))
    return apart.transpose(0, 1) if interleaved else apart


def _trace(record: LayerRecord, n: int) -> Rearrangement:
    """Find the origin of each value of the maps, by calling `reshape` with the indices of all values.

    Raises:
        CaptureError: `reshape` computes instead of rearranging, or does not keep samples apart.
    """
    for tensor, captured in enumerate(record.captured):
        for axis, samples in _axes_of_samples(captured, n):
            shape = [size * samples // n if place == axis else size for place, size in enumerate(captured.shape)]
            numbers = torch.arange(captured.numel() * samples // n, device=captured.device).view(shape)
            others = [torch.full_like(other, -1, dtype=torch.long) for other in record.captured]
            others[tensor] = numbers
            try:
                taken = record.maps(others)
            except (ShapeError, RuntimeError) as error:
                raise_interruption(error)
                continue  # `reshape` accepts only another number of samples, or does arithmetic
            if taken.is_floating_point() or len(taken) != samples or bool((taken < 0).any()):
                continue
            taken = taken.flatten(1)
            if taken.unique().numel() != taken.numel():
                continue
            for interleaved in (False, True):
                local = torch.empty_like(numbers).flatten()
                by_sample = _by_sample(numbers, axis, interleaved, samples).flatten(1)
                places = torch.arange(by_sample.shape[1], device=numbers.device).expand_as(by_sample)
                local[by_sample.flatten()] = places.flatten()
                owner = torch.empty_like(local)
                whose = torch.arange(samples, device=numbers.device)[:, None]
                owner[by_sample.flatten()] = whose.expand_as(by_sample).flatten()
                if torch.equal(owner[taken], whose.expand_as(taken)) and bool((local[taken] == local[taken[:1]]).all()):
                    return Rearrangement(tensor, axis, interleaved, local[taken[0]])
    raise CaptureError(
        f"reshape for layer {record.name!r} cannot be inverted, so its activations cannot be changed; write "
        "reshape for any number of samples (-1 in place of n), without arithmetic, so that all values come from a "
        "single tensor, or choose a method without replay, such as GradCAM"
    )


def _axes_of_samples(tensor: Tensor, n: int) -> Iterator[tuple[int, int]]:
    """Yield the axes that may be the sample axis, with the number of samples to test, which is at least 2."""
    for axis, size in enumerate(tensor.shape):
        if size % n == 0:
            yield axis, n if n > 1 else 2
