"""Track the places of values through every operation of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gradcam_kit.capture.provenance.memory import Memory
from gradcam_kit.capture.provenance.operations import (
    FACTORS,
    MOVED,
    PADDED,
    RESHAPED,
    WHERE,
    is_by_value,
    is_ours,
    is_reduction,
)
from gradcam_kit.capture.provenance.places import UNKNOWN, Places, compressed, lined_up, origin
from gradcam_kit.capture.provenance.probing import copied_if_written, on_copies, probed, written_and_returned
from gradcam_kit.capture.provenance.windows import folded, padded, resampled
from gradcam_kit.errors import raise_interruption

_UNUSUAL = (RuntimeError, ValueError, IndexError, TypeError, KeyError, NotImplementedError, AttributeError)


class Tracker(TorchDispatchMode):
    """Tracks the places of one image through all operations while the mode is active. Results do not change.

    Attributes:
        unknown: names of the operations after which the origin of values is unknown.
    """

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places, self.memory = places, Memory()
        self.unknown: list[str] = []
        self._rules: dict[str, Callable[..., Tensor]] = {
            **dict.fromkeys(("mm", "bmm"), self._mm),
            **dict.fromkeys(("addmm", "baddbmm", "_addmm_activation"), self._addmm),
            **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), self._grid_sampler),
            **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution"), self._convolution),
            "linear": self._linear,
            "embedding": self._embedding,
            "glu": self._glu,
        }

    def mark(self, tensor: Tensor, ids: Tensor) -> None:
        """Set the places of an input's values."""
        self.memory.put(tensor, ids)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and record where its results come from."""
        kwargs = kwargs or {}
        before = None if is_ours(func) else copied_if_written(func, args, kwargs)
        output = func(*args, **kwargs)
        try:
            self._follow(func, args, kwargs, output, before)
        except _UNUSUAL as error:  # the rules do not fit the operation, so its results are of unknown origin
            raise_interruption(error)
            self.unknown.append(str(func))
            for leaf in _tensors(output):
                self._put(leaf, origin(leaf.ndim, UNKNOWN))
        return output

    def _put(self, tensor: Tensor, ids: Tensor | None) -> None:
        with suppress(*_UNUSUAL):  # the tensor may have no storage
            self.memory.put(tensor, ids)

    def _follow(self, func: Any, args: Any, kwargs: Any, output: Any, before: dict[str, Any] | None) -> None:
        schema = func._schema
        name = schema.name.rpartition("::")[2]
        values = dict(zip((one.name for one in schema.arguments), args, strict=False)) | kwargs
        known = {id(leaf): ids for leaf in _tensors(values) if (ids := self.memory.get(leaf)) is not None}
        written = [
            values[a.name] for a in schema.arguments if a.alias_info and a.alias_info.is_write and a.name in values
        ]
        if written:
            if torch.Tag.inplace_view in func.tags:  # this creates another view of memory with unchanged values
                return
            if not is_ours(func):
                self._follow_unknown_writing(func, values, known, written, output, before or {})
                return
            self._follow_writing(func, name.rstrip("_"), values, known, written)
            own = {id(leaf) for leaf in _tensors(written)}
            labelled = _labelled(values, known)
            for leaf in _tensors(output):
                if id(leaf) not in own:
                    self.memory.put(leaf, self._merged(labelled, leaf.shape) if labelled else None)
            return
        if not known or name.endswith("_like") or name.startswith("new_"):
            for leaf in _tensors(output):
                if not func.is_view:
                    self.memory.put(leaf, None)
            return
        found = list(self._results(func, name, values, known, output))
        for leaf, ids in zip(_tensors(output), found, strict=True):
            self.memory.put(leaf, ids, fresh=not func.is_view)

    def _follow_unknown_writing(
        self, func: Any, values: Any, known: Any, written: list[Any], output: Any, before: dict[str, Any]
    ) -> None:
        """Track an operation from outside torch that writes into arguments, by its effect on copies of them."""
        results = written_and_returned(_tensors(written), _tensors(output))
        pairs = zip(_tensors(values), _tensors(before), strict=True)
        numbers = {id(copy): known[id(leaf)] for leaf, copy in pairs if id(leaf) in known}
        found = self._probed(func, partial(on_copies, func), before, numbers, results)
        for leaf, ids in zip(results, found, strict=True):
            self.memory.write(leaf, ids if numbers else origin(leaf.ndim))

    def _follow_writing(self, func: Any, name: str, values: Any, known: Any, written: list[Any]) -> None:
        for target in _tensors(written):
            ids: Tensor | None
            if name in ("zero", "fill", "uniform", "normal"):
                ids = None
            elif name in ("copy", "index_put", "scatter", "masked_scatter") and known:
                if name == "copy":
                    source = known.get(id(values["src"]))
                    ids = None if source is None else lined_up(source, target.ndim)
                else:
                    ids = compressed(getattr(torch.ops.aten, name)(**self._numbers(values, known)))
            elif known and not is_by_value(func, name):
                self.unknown.append(str(func))
                ids = origin(target.ndim, UNKNOWN)
            else:
                ids = self._merged(
                    [(leaf, known[id(leaf)]) for leaf in _tensors(values) if id(leaf) in known], target.shape
                )
            if ids is not None or self.memory.get(target) is not None:
                self.memory.write(target, torch.zeros((1,) * target.ndim, dtype=torch.float64) if ids is None else ids)

    def _numbers(self, values: dict[str, Any], known: dict[int, Tensor]) -> dict[str, Any]:
        """Return the arguments with row numbers in place of values, except for the arguments in `WHERE`."""

        def number(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            nothing = origin(leaf.ndim)
            return known.get(id(leaf), nothing).expand(leaf.shape)

        def host(leaf: Any) -> Any:
            return leaf.cpu() if isinstance(leaf, Tensor) else leaf

        return {key: tree_map(host if key in WHERE else number, value) for key, value in values.items()}

    def _results(
        self, func: Any, name: str, values: dict[str, Any], known: Any, output: Any
    ) -> Iterator[Tensor | None]:
        leaves = _tensors(output)
        if not leaves:
            return
        first = leaves[0]
        if not is_ours(func) and not func.is_view and not (func.namespace == "torchvision" and name == "deform_conv2d"):
            yield from self._probed(func, lambda changed: _tensors(func(**changed)), values, known, leaves)
            return
        rule = self._attention if name.startswith("_scaled_dot_product") else self._rules.get(name)
        one = next(iter(values.values()))
        ids: Any = known.get(id(one)) if isinstance(one, Tensor) else None
        if name == "view_as_complex":
            yield self.places.hull(ids, [ids.ndim - 1]).squeeze(-1)
        elif name == "view_as_real":
            yield ids[..., None]
        elif name in RESHAPED:
            yield compressed(ids.expand(one.shape).reshape(first.shape))
        elif func.is_view or name in MOVED:
            moved = func(**self._numbers(values, known))
            yield from (compressed(part) for part in (moved if isinstance(moved, list | tuple) else [moved]))
        elif name in ("sort", "topk"):
            taken = compressed(ids.expand(one.shape).gather(values.get("dim", -1), leaves[1].cpu()))
            yield from (taken, taken)
        elif name == "constant_pad_nd" or name in PADDED:
            yield padded(self.places, known[id(one)], one, values["pad" if "pad" in values else "padding"], first)
        elif name in ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"):  # results: the sequence and the last states
            yield self.places.hull(ids, [ids.ndim - 1])
            yield from (self.places.hull(ids, range(ids.ndim)) for _ in leaves[1:])
        elif name == "col2im":
            yield folded(self.places, ids.expand(one.shape), values, first)
        elif rule is not None:
            yield rule(values, known, first)
            yield from (None for _ in leaves[1:])
        elif name.startswith(("upsample", "_upsample")) or name in ("deform_conv2d",) or "pool" in name:
            assert ids is not None
            windows = None if "adaptive" in name or "upsample" in name or name == "deform_conv2d" else values
            channels = [1] if name == "deform_conv2d" else []
            for leaf in leaves:
                yield resampled(self.places, self.places.hull(ids, channels), one.shape, leaf.shape, windows)
        elif is_by_value(func, name) or is_reduction(func, name):
            for leaf in leaves:
                yield self._merged(_labelled(values, known), leaf.shape, values)
        else:
            yield from self._probed(func, lambda changed: _tensors(func(**changed)), values, known, leaves)

    def _probed(self, func: Any, call: Any, values: Any, known: Any, outputs: list[Tensor]) -> list[Tensor]:
        """Return row numbers of the results of an operation without a rule; record its name if some are unknown."""
        try:
            found = probed(call, values, known, outputs, self.places)
        except _UNUSUAL as error:  # the operation does not accept other values
            raise_interruption(error)
            found = [None] * len(outputs)
        if None in found:
            self.unknown.append(str(func))
        return [origin(leaf.ndim, UNKNOWN) if ids is None else ids for leaf, ids in zip(outputs, found, strict=True)]

    def _merged(self, labelled: Any, shape: Sequence[int], values: Any = None) -> Tensor:
        """Return the narrowest place for pointwise operations, and the hull for reductions."""
        if all(_broadcasts(leaf.shape, shape) for leaf, _ in labelled):
            found = origin(len(shape))
            for k, (_, ids) in enumerate(labelled):
                ids = lined_up(ids, len(shape))
                found = ids if k == 0 else self.places.narrower(found, ids)
            return found
        if len(labelled) == 1 and values is not None:
            ((leaf, ids),) = labelled
            given = values.get("dim")
            given = list(range(leaf.ndim)) if given is None or given == [] else given
            dims = [d % leaf.ndim for d in ([given] if isinstance(given, int) else given)]
            kept = [1 if d in dims else size for d, size in enumerate(leaf.shape)]
            if list(shape) in (kept, [size for d, size in enumerate(leaf.shape) if d not in dims]):
                hull = self.places.hull(ids, dims)
                return (
                    hull
                    if len(shape) == leaf.ndim
                    else hull.reshape([s for d, s in enumerate(hull.shape) if d not in dims])
                )
        return origin(len(shape), UNKNOWN)

    # A sum of products has the place of a row of the first factor or of a column of the second, whichever is narrower.

    def _product(self, left: Tensor | None, right: Tensor | None) -> Tensor:
        nothing = origin(2)
        rows = nothing if left is None else self.places.hull(left, [left.ndim - 1])
        columns = nothing if right is None else self.places.hull(right, [right.ndim - 2])
        ndim = max(rows.ndim, columns.ndim)
        return self.places.narrower(lined_up(rows, ndim), lined_up(columns, ndim))

    def _mm(self, values: Any, known: Any, output: Tensor) -> Tensor:
        left, right, *_ = (values[key] for key in values if key in FACTORS)
        return self._product(known.get(id(left)), known.get(id(right)))

    def _addmm(self, values: Any, known: Any, output: Tensor) -> Tensor:
        product = self._mm({key: value for key, value in values.items() if key != "self"}, known, output)
        added = known.get(id(values["self"]))
        return product if added is None else self.places.narrower(lined_up(added, output.ndim), product)

    def _linear(self, values: Any, known: Any, output: Tensor) -> Tensor:
        ids = known[id(values["input"])]
        return self.places.hull(ids, [ids.ndim - 1])

    def _attention(self, values: Any, known: Any, output: Tensor) -> Tensor:
        query, key, value = (known.get(id(values[name])) for name in ("query", "key", "value"))
        try:
            seen = self._product(query, None if key is None else key.mT)
            return lined_up(self._product(seen, value), output.ndim)
        except RuntimeError:  # keys are shared by groups of heads
            if query is None:
                raise
            return self.places.hull(query, [query.ndim - 1])

    def _glu(self, values: Any, known: Any, output: Tensor) -> Tensor:
        ids, dim = known[id(values["self"])], values.get("dim", -1)
        return ids if ids.shape[dim] == 1 else self.places.narrower(*ids.chunk(2, dim))

    def _embedding(self, values: Any, known: Any, output: Tensor) -> Tensor:
        return known[id(values["indices"])][..., None]  # type: ignore[no-any-return]

    def _grid_sampler(self, values: Any, known: Any, output: Tensor) -> Tensor:
        ids, where = known.get(id(values["input"])), known.get(id(values["grid"]))
        nothing = origin(output.ndim)
        found = nothing if ids is None else self.places.hull(ids, range(2, ids.ndim))
        asked = nothing if where is None else self.places.hull(where, [where.ndim - 1]).movedim(-1, 1)
        return self.places.narrower(asked, found)

    def _convolution(self, values: Any, known: Any, output: Tensor) -> Tensor:
        image = values["input"]
        ids = known.get(id(image))
        if ids is None:  # the kernel is computed from the images
            return origin(output.ndim, UNKNOWN)
        kernel = values["weight"].shape[2:]
        return resampled(
            self.places, self.places.hull(ids, [1]), image.shape, output.shape, {**values, "kernel_size": kernel}
        )


def _labelled(values: Any, known: dict[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(leaf, known[id(leaf)]) for leaf in _tensors(values) if id(leaf) in known]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))
