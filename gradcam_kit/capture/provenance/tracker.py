"""Every operation of a forward pass, and what it does to the places of its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gradcam_kit.capture.provenance.memory import Memory
from gradcam_kit.capture.provenance.places import CONSTANT, UNKNOWN, Places, compressed, lined_up, origin
from gradcam_kit.errors import raise_interruption

_RESHAPED = ("view", "_unsafe_view", "_reshape_alias", "reshape")
_MOVED = (
    *("cat", "stack", "roll", "flip", "rot90", "repeat", "index", "index_select", "gather", "take_along_dim"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "slice_scatter", "select_scatter"),
    *("scatter", "index_put", "masked_scatter", "masked_select"),
)
"""Operations that only move values: what they do to a tensor they do to its row numbers."""
_WHERE = ("index", "indices", "mask")
"""Arguments of these operations that say from where to where."""
_FACTORS = ("self", "mat1", "batch1", "mat2", "batch2")
_PADDED = tuple(f"{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3))
_MIXED = ("_fft", "fft_", "linalg", "_linalg", "col2im", "scatter_add", "scatter_reduce", "index_add", "_cdist")
_UNUSUAL = (RuntimeError, ValueError, IndexError, TypeError, KeyError, NotImplementedError, AttributeError)


class Tracker(TorchDispatchMode):
    """Follows the places of one image through all operations that run while it is active; changes no result."""

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places, self.memory = places, Memory()
        self._rules: dict[str, Callable[..., Tensor]] = {
            **dict.fromkeys(("mm", "bmm"), self._mm),
            **dict.fromkeys(("addmm", "baddbmm"), self._addmm),
            **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), self._grid_sampler),
            **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution"), self._convolution),
            "linear": self._linear,
            "embedding": self._embedding,
        }

    def mark(self, tensor: Tensor, ids: Tensor) -> None:
        """Say where the values of an input come from."""
        self.memory.put(tensor, ids)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then note where its results come from."""
        output = func(*args, **(kwargs or {}))
        try:
            self._follow(func, args, kwargs or {}, output)
        except _UNUSUAL as error:  # an operation of an unusual kind: its results are of unknown origin
            raise_interruption(error)
            for leaf in _tensors(output):
                self._put(leaf, origin(leaf.ndim, UNKNOWN))
        return output

    def _put(self, tensor: Tensor, ids: Tensor | None) -> None:
        with suppress(*_UNUSUAL):  # it may have no memory of its own
            self.memory.put(tensor, ids)

    def _follow(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        schema = func._schema
        name = schema.name.rpartition("::")[2]
        values = dict(zip((one.name for one in schema.arguments), args, strict=False)) | kwargs
        known = {id(leaf): ids for leaf in _tensors(values) if (ids := self.memory.get(leaf)) is not None}
        written = [
            values[a.name] for a in schema.arguments if a.alias_info and a.alias_info.is_write and a.name in values
        ]
        if written:
            self._follow_writing(name.rstrip("_"), values, known, written)
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

    def _follow_writing(self, name: str, values: Any, known: Any, written: list[Any]) -> None:
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
            else:
                ids = self._merged(
                    [(leaf, known[id(leaf)]) for leaf in _tensors(values) if id(leaf) in known], target.shape
                )
            if ids is not None or self.memory.get(target) is not None:
                self.memory.write(target, torch.zeros((1,) * target.ndim, dtype=torch.float64) if ids is None else ids)

    def _numbers(self, values: dict[str, Any], known: dict[int, Tensor]) -> dict[str, Any]:
        """The arguments with row numbers in place of values; those that say from where to where stay."""

        def number(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            nothing = origin(leaf.ndim)
            return known.get(id(leaf), nothing).expand(leaf.shape)

        def host(leaf: Any) -> Any:
            return leaf.cpu() if isinstance(leaf, Tensor) else leaf

        return {key: tree_map(host if key in _WHERE else number, value) for key, value in values.items()}

    def _results(
        self, func: Any, name: str, values: dict[str, Any], known: Any, output: Any
    ) -> Iterator[Tensor | None]:
        leaves = _tensors(output)
        if not leaves:
            return
        first = leaves[0]
        rule = self._attention if name.startswith("_scaled_dot_product") else self._rules.get(name)
        one = next(iter(values.values()))
        ids = known.get(id(one)) if isinstance(one, Tensor) else None
        if name in _RESHAPED or name in ("view_as_complex", "view_as_real"):
            assert ids is not None
            if name == "view_as_complex":
                yield self.places.hull(ids, [ids.ndim - 1]).squeeze(-1)
            elif name == "view_as_real":
                yield ids[..., None]
            else:
                yield compressed(ids.expand(one.shape).reshape(first.shape))
        elif func.is_view or name in _MOVED:
            moved = func(**self._numbers(values, known))
            yield from (compressed(part) for part in (moved if isinstance(moved, list | tuple) else [moved]))
        elif name in ("sort", "topk"):
            assert ids is not None
            taken = compressed(ids.expand(one.shape).gather(values.get("dim", -1), leaves[1].cpu()))
            yield from (taken, taken)
        elif name == "constant_pad_nd" or name in _PADDED:
            yield self._padded(values, known, first)
        elif rule is not None:
            yield rule(values, known, first)
            yield from (None for _ in leaves[1:])
        elif name.startswith(("upsample", "_upsample")) or name in ("deform_conv2d",) or "pool" in name:
            assert ids is not None
            windows = None if "adaptive" in name or "upsample" in name or name == "deform_conv2d" else values
            channels = [1] if name == "deform_conv2d" else []
            for leaf in leaves:
                yield self._resampled(self.places.hull(ids, channels), one.shape, leaf.shape, windows)
        elif name.startswith(_MIXED):
            yield from (origin(leaf.ndim, UNKNOWN) for leaf in leaves)
        else:
            for leaf in leaves:
                yield self._merged(_labelled(values, known), leaf.shape, values)

    def _merged(self, labelled: Any, shape: Sequence[int], values: Any = None) -> Tensor:
        """Of operations value by value the narrowest place, and of reductions the hull."""
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

    # Sums of products: the place of a row of the first factor, or of a column of the second, whichever is narrower

    def _product(self, left: Tensor | None, right: Tensor | None) -> Tensor:
        nothing = origin(2)
        rows = nothing if left is None else self.places.hull(left, [left.ndim - 1])
        columns = nothing if right is None else self.places.hull(right, [right.ndim - 2])
        ndim = max(rows.ndim, columns.ndim)
        return self.places.narrower(lined_up(rows, ndim), lined_up(columns, ndim))

    def _mm(self, values: Any, known: Any, output: Tensor) -> Tensor:
        left, right, *_ = (values[key] for key in values if key in _FACTORS)
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

    def _embedding(self, values: Any, known: Any, output: Tensor) -> Tensor:
        return known[id(values["indices"])][..., None]  # type: ignore[no-any-return]

    def _grid_sampler(self, values: Any, known: Any, output: Tensor) -> Tensor:
        ids, where = known.get(id(values["input"])), known.get(id(values["grid"]))
        nothing = origin(output.ndim)
        found = nothing if ids is None else self.places.hull(ids, range(2, ids.ndim))
        asked = nothing if where is None else self.places.hull(where, [where.ndim - 1]).movedim(-1, 1)
        return self.places.narrower(asked, found)

    # Windows: the place of their middle, because what a convolution sees around it moves no position

    def _convolution(self, values: Any, known: Any, output: Tensor) -> Tensor:
        image = values["input"]
        ids = known.get(id(image))
        if ids is None:  # the kernel comes from the images
            return origin(output.ndim, UNKNOWN)
        kernel = values["weight"].shape[2:]
        return self._resampled(self.places.hull(ids, [1]), image.shape, output.shape, {**values, "kernel_size": kernel})

    def _resampled(self, ids: Tensor, before: Sequence[int], after: Sequence[int], values: Any) -> Tensor:
        axes = range(len(after) - _positions(after), len(after))
        if all(after[d] == 1 for d in axes):
            return self.places.hull(ids, list(axes))
        centers = {}
        for k, d in enumerate(axes):
            index = torch.arange(after[d], dtype=torch.float32)
            kernel = _pick(values, "kernel_size", k, None)
            if kernel is None or (values or {}).get("transposed"):
                centers[d] = (index + 0.5) * before[d] / after[d] - 0.5
            else:
                stride = _pick(values, "stride", k, kernel)
                reach = _pick(values, "dilation", k, 1) * (kernel - 1) / 2
                centers[d] = index * stride - _pick(values, "padding", k, 0) + reach
        return self.places.resample(ids, centers)

    def _padded(self, values: Any, known: Any, output: Tensor) -> Tensor:
        image, pad = values["self"], values.get("pad", values.get("padding"))
        ids = known[id(image)]
        padded = {image.ndim - 1 - k: pad[2 * k] for k in range(len(pad) // 2) if pad[2 * k] or pad[2 * k + 1]}
        if all(self.places.axes_along(ids, d) < 2 for d in padded):  # the border of maps goes on as they do
            index = {d: torch.arange(output.shape[d], dtype=torch.float32) - left for d, left in padded.items()}
            return self.places.resample(ids, index)
        return compressed(torch.constant_pad_nd(ids.expand(image.shape), pad, float(CONSTANT)))  # tokens, not positions


def _labelled(values: Any, known: dict[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(leaf, known[id(leaf)]) for leaf in _tensors(values) if id(leaf) in known]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _positions(shape: Sequence[int]) -> int:
    return max(len(shape) - 2, 1)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def _pick(values: Any, key: str, place: int, default: Any) -> Any:
    given = (values or {}).get(key)
    if given is None or given == []:
        return default
    if isinstance(given, int):
        return given
    return given[place if len(given) > 1 else 0]
