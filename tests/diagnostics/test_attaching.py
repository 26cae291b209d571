"""Hooks of a block: where they run, when they end, and that copies of the model carry none."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from gradcam_kit.capture.attaching import Hooks, holding_hooks


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


def number_of_hooks(model: nn.Module) -> int:
    stores = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return sum(len(getattr(module, store)) for module in model.modules() for store in stores)


def watch(attach: Hooks, model: nn.Module, seen: list[str]) -> None:
    for name, module in model.named_modules():
        attach.before(module, lambda _module, args, kwargs, name=name: seen.append(f">{name}"), with_kwargs=True)
        attach.after(module, lambda _module, args, output, name=name: seen.append(f"<{name}"))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_hooks_run_in_order_and_are_gone() -> None:
    model, seen = small(), []
    before = [dict(module.__dict__) for module in model.modules()]
    with holding_hooks() as attach:
        watch(attach, model, seen)
        model(torch.ones(1, 3))
    assert seen == [">", ">0", "<0", ">1", "<1", ">2", "<2", "<"]
    assert number_of_hooks(model) == 0
    assert [set(module.__dict__) for module in model.modules()] == [set(one) for one in before]


def endless(model: nn.Module, seen: list[str]) -> Iterator[None]:
    with holding_hooks() as attach:
        watch(attach, model, seen)
        while True:
            yield


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_hooks_are_gone_after_every_kind_of_end(error: type[BaseException]) -> None:
    model, seen = small(), []
    with pytest.raises(error), holding_hooks() as attach:  # noqa: PT012 - the block is what is tested
        watch(attach, model, seen)
        raise error
    assert number_of_hooks(model) == 0
    generator = endless(model, seen)
    next(generator)
    assert number_of_hooks(model) > 0
    generator.close()
    assert number_of_hooks(model) == 0


def test_one_thread_or_all() -> None:
    model, own, every = small(), [], []
    with holding_hooks() as attach, holding_hooks(every_thread=True) as attach_everywhere:
        attach.after(model, lambda *_: own.append(attach.in_own_thread))
        attach_everywhere.after(model, lambda *_: every.append(attach_everywhere.in_own_thread))
        thread = threading.Thread(target=model, args=(torch.ones(1, 3),))
        thread.start()
        thread.join()
        model(torch.ones(1, 3))
    assert own == [True]
    assert every == [False, True]


def test_nested_blocks_end_one_by_one() -> None:
    model, outer, inner = small(), [], []
    with holding_hooks(protect_copies=True) as attach:
        attach.after(model, lambda *_: outer.append(1))
        with holding_hooks(protect_copies=True) as attach_too:
            attach_too.after(model, lambda *_: inner.append(1))
            model(torch.ones(1, 3))
        model(torch.ones(1, 3))
        assert number_of_hooks(copy.deepcopy(model)) == 0
    assert (len(outer), len(inner)) == (2, 1)
    assert number_of_hooks(model) == 0


@pytest.mark.parametrize("kind", ["plain", "parametrized", "traced"])
def test_copies_carry_no_hooks(kind: str) -> None:
    model, seen = small(), []
    if kind == "parametrized":
        parametrize.register_parametrization(model[0], "weight", Doubled())
    if kind == "traced":
        model = torch.fx.symbolic_trace(model)
    users = model.get_submodule("2").register_forward_hook(lambda *_: None)
    with holding_hooks(protect_copies=True) as attach:
        watch(attach, model, seen)
        copies = [copy.deepcopy(model)]
        if kind == "traced":
            users.remove()  # a lambda cannot be pickled
            assert number_of_hooks(pickle.loads(pickle.dumps(model))) <= number_of_hooks(model)
        if kind == "plain":
            users.remove()
            copies.append(pickle.loads(pickle.dumps(model)))
            stream = io.BytesIO()
            torch.save(model, stream)
            stream.seek(0)
            copies.append(torch.load(stream, weights_only=False))
    for copied in copies:
        assert number_of_hooks(copied) == (1 if copied is copies[0] else 0)  # the user's own stays
        assert torch.equal(copied(torch.ones(1, 3)), model(torch.ones(1, 3)))
        assert not any({"__reduce_ex__", "__deepcopy__"} & set(module.__dict__) for module in copied.modules())
    assert seen == []
    assert not any({"__reduce_ex__", "__deepcopy__"} & set(module.__dict__) for module in model.modules())


def test_copies_that_are_not_protected_carry_hooks_that_do_nothing() -> None:
    model, seen = small(), []
    with holding_hooks() as attach:
        watch(attach, model, seen)
        assert not any({"__reduce_ex__", "__deepcopy__"} & set(module.__dict__) for module in model.modules())
        copied = copy.deepcopy(model)
        copied(torch.ones(1, 3))
    assert seen == []


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripted_modules_are_skipped() -> None:
    scripted = torch.jit.trace(nn.Linear(3, 3), torch.ones(1, 3))
    model, seen = nn.Sequential(scripted, nn.ReLU()), []
    with holding_hooks() as attach:
        watch(attach, model, seen)
        model(torch.ones(1, 3))
    assert seen == [">", ">1", "<1", "<"]


def test_gradients_of_tensors_nodes_and_parameters() -> None:
    model, seen = small(), {}
    with holding_hooks() as attach:
        output = model(torch.ones(5, 3))
        attach.on_gradient(output, lambda gradient: seen.update(output=gradient))
        attach.before_node(output.grad_fn, lambda gradients: seen.update(before=gradients[0]))
        attach.after_node(output.grad_fn, lambda inputs, outputs: seen.update(after=outputs[0]))
        attach.on_accumulation(model[2].bias, lambda parameter: seen.update(bias=parameter.grad.clone()))
        output.sum().backward()
    assert all(torch.equal(seen[name], torch.ones(5, 2)) for name in ("output", "before", "after"))
    assert torch.equal(seen["bias"], torch.full((2,), 5.0))
    assert not model[2].bias._post_accumulate_grad_hooks


def test_a_backward_pass_after_the_block_meets_no_hook() -> None:
    model, seen = small(), []
    with holding_hooks() as attach:
        output = model(torch.ones(5, 3))
        attach.on_gradient(output, seen.append)
        attach.after_node(output.grad_fn, lambda *_: seen.append(1))
    output.sum().backward()
    assert seen == []


def test_a_long_block_holds_no_graph_and_does_not_grow() -> None:
    model = small()
    with holding_hooks() as attach:
        for step in range(1000):
            output = model(torch.ones(2, 3))
            attach.on_gradient(output, lambda gradient: None)
            if step == 500:
                alive = weakref.ref(output)
        del output
        gc.collect()
        assert alive() is None
        assert len(attach._short_lived) < 600


def test_steps_of_an_optimizer() -> None:
    model, seen = small(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with holding_hooks() as attach:
        attach.before_step(optimizer, lambda *_: seen.append("before"))
        attach.after_step(optimizer, lambda *_: seen.append("after"))
        optimizer.step()
    optimizer.step()
    assert seen == ["before", "after"]


def test_an_interruption_while_hooks_are_removed_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, remove, calls = small(), RemovableHandle.remove, []

    def interrupted(handle: RemovableHandle) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise KeyboardInterrupt
        remove(handle)

    monkeypatch.setattr(RemovableHandle, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt), holding_hooks(protect_copies=True) as attach:
        watch(attach, model, [])
    assert number_of_hooks(model) == 0
    assert not any("__reduce_ex__" in module.__dict__ for module in model.modules())
