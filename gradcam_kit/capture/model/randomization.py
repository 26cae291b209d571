"""Randomize models for sanity checks: Adebayo et al., NeurIPS 2018, https://arxiv.org/abs/1810.03292."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gradcam_kit.capture.model.inputs import Inputs, Runner, read_inputs
from gradcam_kit.capture.model.state import check_model, untouched
from gradcam_kit.errors import LayerNotFoundError, OptionError, did_you_mean
from gradcam_kit.types import Images

_RESETS = ("reset_parameters", "_reset_parameters")
# standard deviation for parameters that start as zeros: class tokens and position embeddings of transformers
_STD = 0.02


class Randomizer:
    """Gives the layers of a model random parameters, and restores the original ones.

    A layer is a module that owns tensors. Its new values come from its own initialization (`reset_parameters`), which
    also resets running statistics. Parameters without an initialization (class token, position embedding, layer scale,
    ...) get their own values in random order, or normal values with standard deviation 0.02 if all are zero. Other
    constant parameters probably still have their initial values, and are left unchanged.

    Attributes:
        layers: names of the layers in the order in which the model used them.
        unused: names of the layers that the model did not use in the pass.
        without_initializer: names of the parameters, collected so far, that their module does not initialize.
        kept: the names in `without_initializer` of parameters that kept their values.
    """

    def __init__(self, model: nn.Module, used: Sequence[str], seed: int) -> None:
        owners = {name: module for name, module in model.named_modules() if _owns(module)}
        self._model, self._owners, self._seed = model, owners, seed
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self.layers = tuple(used)
        self.unused = tuple(name for name in owners if name not in used)
        self.without_initializer: tuple[str, ...] = ()
        self.kept: tuple[str, ...] = ()

    def randomize(self, *layers: str, draw: int = 0) -> None:
        """Give these modules and everything inside them new parameters.

        Args:
            layers: names of modules of the model; none = all layers.
            draw: number of the draw; each number gives different values. The values of a layer depend only on the seed,
                the draw and the name of the layer, and are drawn on the host. Neither the order in which layers are
                randomized nor the device changes them.
        """
        for name in [owner for layer in layers for owner in self._inside(layer)] if layers else self._owners:
            self._randomize(name, draw)

    def restore(self) -> None:
        """Restore the original parameters of all layers."""
        for tensor, own in self._saved.values():
            tensor.data = own
        self._saved.clear()

    def cascading(self, layers: Sequence[str] | None = None) -> Iterator[str]:
        """Randomize one more layer at each step, from output to input, and yield the name of the added layer."""
        return self._steps(layers, lambda: None)

    def independent(self, layers: Sequence[str] | None = None) -> Iterator[str]:
        """Randomize one layer at a time, from output to input, and yield its name."""
        return self._steps(layers, self.restore)

    def _steps(self, layers: Sequence[str] | None, between: Callable[[], None]) -> Iterator[str]:
        if layers is not None:
            self._check_used(layers)
        layers = self.layers if layers is None else layers
        try:
            for name in sorted(layers, key=self._last_use, reverse=True):
                between()
                self.randomize(name)
                yield name
        finally:
            self.restore()

    def _check_used(self, layers: Sequence[str]) -> None:
        idle = [name for name in layers if self._last_use(name) < 0]
        if idle or not layers:
            problem = f"take no part in the pass: {', '.join(idle)}" if idle else "is empty"
            raise OptionError(f"layers {problem}; expected some of {', '.join(self.layers)}, or modules around them")

    def _last_use(self, layer: str) -> int:
        inside = set(self._inside(layer))
        return max((place for place, name in enumerate(self.layers) if name in inside), default=-1)

    def _inside(self, layer: str) -> list[str]:
        found = [name for name in self._owners if name == layer or name.startswith(f"{layer}.")]
        if not found:
            hint = did_you_mean(layer, self._owners)
            raise LayerNotFoundError(f"{type(self._model).__name__} has no layer {layer!r} with parameters{hint}")
        return found

    def _randomize(self, name: str, draw: int) -> None:
        module = self._owners[name]
        generator = torch.Generator().manual_seed(_layer_seed(self._seed, draw, name))
        fresh = _initialized(module, generator)
        for key, parameter in module._parameters.items():
            if parameter is None or key in fresh:
                continue
            path = f"{name}.{key}" if name else key
            fresh[key], changed = _without_initializer(parameter.detach(), generator)
            self.without_initializer = _with(self.without_initializer, path)
            if not changed:
                self.kept = _with(self.kept, path)
        for key, values in fresh.items():
            tensor = module._parameters[key] if key in module._parameters else module._buffers[key]
            assert tensor is not None
            # The tensor gets new memory; its original memory is set aside and never written to.
            self._saved.setdefault(id(tensor), (tensor, tensor.data))
            tensor.data = torch.empty_like(tensor).copy_(values)


@contextmanager
def randomizing(
    model: nn.Module,
    images: Images,
    *,
    seed: int = 0,
    keep_modes: bool = False,
    entry: str = "__call__",
    **forward_kwargs: Any,
) -> Iterator[Randomizer]:
    """Yield a `Randomizer` for the model's layers, and restore the model afterwards, even after an error.

    The model runs once to find the order in which its layers use their parameters. Values are replaced in place, so
    that every method that explains the model sees the random values. Only randomized layers exist twice in memory.
    Other threads that explain the model wait meanwhile, but plain passes in other threads would see the random values.

    Args:
        model: any PyTorch model.
        images: input of the model.
        seed: seed from which the seed of every layer is derived. The global generator is untouched.
        keep_modes: leave modules in train mode as they are, see `BaseCAM`.
        entry: name of the model's method that takes the images, such as "get_image_features" of a model of images and
            texts. The parameters of its text tower are then kept.
        forward_kwargs: passed on to the model.
    """
    model = check_model(model)
    inputs = replace(read_inputs(images, forward_kwargs, model), entry=entry)
    with untouched(model, inputs.images.device, keep_modes):
        randomizer = Randomizer(model, _execution_order(model, inputs), seed)
        try:
            yield randomizer
        finally:
            randomizer.restore()


class _Uses(TorchFunctionMode):
    """Records the layers in the order in which operations use their tensors."""

    def __init__(self, owners: dict[int, str]) -> None:
        super().__init__()
        self.owners = owners
        self.order: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":  # reading a shape or a type does not count as use
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and id(leaf) in self.owners:
                    self.order.setdefault(self.owners[id(leaf)])
        return func(*args, **(kwargs or {}))


def _execution_order(model: nn.Module, inputs: Inputs) -> list[str]:
    """Return the layers in the order of their first use."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if _owns(module):
            for tensor in _tensors(module).values():
                owners.setdefault(id(tensor), name)  # shared parameters belong to the first module that has them
    with _Uses(owners) as uses:
        Runner.of(model, inputs.images.device)(inputs.first())
    return list(uses.order)


def _owns(module: nn.Module) -> bool:
    """Whether a module has parameters, or statistics that its initialization resets."""
    has_parameters = any(parameter is not None for parameter in module._parameters.values())
    return has_parameters or bool(_tensors(module) and _reset_of(module))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    found = {**module._buffers, **module._parameters}
    return {key: tensor for key, tensor in found.items() if tensor is not None}


def _reset_of(module: nn.Module) -> Callable[[], Any] | None:
    """Return the module's own initialization, if it can be called without arguments."""
    for name in _RESETS:
        reset = getattr(module, name, None)
        if callable(reset):
            try:
                inspect.signature(reset).bind()
            except (TypeError, ValueError):
                continue
            return reset  # type: ignore[no-any-return]
    return None


def _initialized(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the tensors that the module's own initialization sets, with their new values, on the host."""
    reset = _reset_of(module)
    if reset is None:
        return {}
    with _host_copies(module) as before, _drawing_from(generator):
        reset()
        after = _tensors(module)
        return {
            key: after[key].detach()
            for key, (copy, version, old) in before.items()
            if after[key] is not copy or copy._version != version or not torch.equal(copy, old)
        }


@contextmanager
def _host_copies(module: nn.Module) -> Iterator[dict[str, tuple[Tensor, int, Tensor]]]:
    """Replace all tensors of a module and its submodules with copies on the host, in at least float32.

    Yields the copy, its version and the original values for each of the module's own parameters and buffers.
    """
    # Copy plain attributes too, because a computed weight (weight norm) must not be overwritten.
    stores: list[dict[str, Any]] = [
        store for part in module.modules() for store in (part._parameters, part._buffers, vars(part))
    ]
    entries = [(store, {key: held for key, held in store.items() if isinstance(held, Tensor)}) for store in stores]
    names = [set(store) for store in stores]
    own: dict[str, tuple[Tensor, int, Tensor]] = {}
    try:
        for store, before in entries:
            for key, tensor in before.items():
                kind = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
                copy = tensor.detach().to("cpu", kind, copy=True)
                if isinstance(tensor, nn.Parameter):
                    copy = nn.Parameter(copy, requires_grad=False)
                store[key] = copy
                if store is module._parameters or store is module._buffers:
                    own[key] = copy, copy._version, copy.detach().clone()
        yield own
    finally:
        for (store, before), known in zip(entries, names, strict=True):
            for added in [key for key in store if key not in known]:
                del store[added]
            store.update(before)


@contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Set the host's global generator, which initializations use, to the state of another generator."""
    state = torch.get_rng_state()
    try:
        torch.set_rng_state(generator.get_state())
        yield
    finally:
        torch.set_rng_state(state)


def _without_initializer(values: Tensor, generator: torch.Generator) -> tuple[Tensor, bool]:
    """Return new values for a parameter that its module does not initialize, and whether they changed."""
    host = values.cpu()
    flat = host.flatten()
    if len(flat) and bool((flat != flat[0]).any()):
        shuffled = flat[torch.randperm(len(flat), generator=generator)]
        shuffled = flat.roll(1) if torch.equal(shuffled, flat) else shuffled
        return shuffled.view(host.shape), True
    if len(flat) and not bool(flat.any()) and flat.is_floating_point():
        return _STD * torch.randn(host.shape, generator=generator), True
    return host, False


def _layer_seed(seed: int, draw: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {draw} {name}".encode(), digest_size=7).digest(), "big")


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return names if name in names else (*names, name)
