"""Operations that the tracker has no rule for: followed by what they do to other values, or refused; never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models import build, images
from torch import Tensor, nn

from gradcam_kit import GradCAM
from gradcam_kit.capture import read_inputs
from gradcam_kit.capture.layouts import ChannelsLast, Tokens
from gradcam_kit.capture.provenance import evidence
from gradcam_kit.errors import LayerNotFoundError, ShapeError

ORDER = [3, 0, 2, 1, 7, 4, 6, 5, 15, 8, 9, 10, 13, 12, 11, 14]
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "flipped": lambda tokens: tokens.flip(1),
    "rolled": lambda tokens: tokens.roll(3, 1),
    "shuffled": lambda tokens: tokens[:, ORDER],
    "gathered": lambda tokens: tokens.gather(1, torch.tensor(ORDER)[None, :, None].expand_as(tokens)),
    "activated": lambda tokens: tokens * tokens.sigmoid(),
    "normalized": lambda tokens: tokens / tokens.norm(dim=2, keepdim=True).clamp(min=1e-6),
    "projected": lambda tokens: tokens @ torch.linspace(-1, 1, 24).view(6, 4),
    "accumulated": lambda tokens: tokens.flip(1).cumsum(1) / 4,
    "mixed": lambda tokens: torch.fft.fft(tokens, dim=1).real.contiguous(),
    "halved": lambda tokens: tokens[:, ::4] + tokens[:, 3::4],
}
TURNED = tuple(reversed(range(16)))


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[torch.library.Library]:
    """Operators of a library that nobody has heard of; the last one writes into its argument."""
    made = torch.library.Library("unheard", "DEF")
    for name, run in OPERATIONS.items():
        made.define(f"{name}(Tensor tokens) -> Tensor")
        made.impl(name, run, "CompositeExplicitAutograd")
    made.define("turn_(Tensor(a!) tokens) -> ()")
    made.impl("turn_", lambda tokens: [tokens.copy_(tokens.flip(1))].clear(), "CompositeExplicitAutograd")
    yield made
    made._destroy()


class Own(torch.autograd.Function):
    """An operation with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, name: str) -> Tensor:  # type: ignore[override]
        ctx.shape = tokens.shape
        return getattr(torch.ops.unheard, name)(tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient.sum((1, 2), keepdim=True).expand(ctx.shape), None


def network(run: Callable[[Tensor], Tensor], width: int = 6, *, residual: bool = False) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        tokens = m.first(m.patch(x).flatten(2).mT)
        changed = run(tokens)
        return m.fc(m.norm(tokens + changed if residual else changed).mean(1))

    parts = {"patch": nn.Conv2d(3, 6, 4, 4), "first": nn.LayerNorm(6), "norm": nn.LayerNorm(width)}
    return build(forward, **parts, fc=nn.Linear(width, 3)).eval()


def verdict(model: nn.Module) -> Any:
    found = evidence.gather(model, read_inputs(images(2), {}))
    (own,) = found.verdicts[model.get_submodule("norm")]
    return own.layout or own.reason


@pytest.mark.parametrize(("name", "order"), [
    ("flipped", TURNED),
    ("rolled", tuple((i + 3) % 16 for i in range(16))),
    ("shuffled", tuple(ORDER.index(i) for i in range(16))),
    ("gathered", tuple(ORDER.index(i) for i in range(16))),
])  # fmt: skip
@pytest.mark.parametrize("as_function", [False, True])
def test_tokens_that_an_unknown_operation_moves_are_followed(
    name: str, order: tuple[int, ...], as_function: bool
) -> None:
    operation = getattr(torch.ops.unheard, name)
    model = network((lambda tokens: Own.apply(tokens, name)) if as_function else operation)
    assert verdict(model) == Tokens((4, 4), 0, 0, order)
    plain = network(lambda tokens: tokens)
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(_at_places(model), _at_places(plain), atol=1e-5)


def _at_places(model: nn.Module) -> Tensor:
    """The output of the last norm, each value where it comes from."""
    layout = verdict(model)
    kept: list[Tensor] = []
    handle = model.get_submodule("norm").register_forward_hook(lambda _, __, output: kept.append(output))
    with torch.no_grad():
        model(images(2))
    handle.remove()
    return layout.to_maps(kept[0])


def test_an_operation_that_writes_into_its_argument_is_followed() -> None:
    def run(tokens: Tensor) -> Tensor:
        changed = tokens.clone()
        torch.ops.unheard.turn_(changed)
        return changed

    assert verdict(network(run)) == Tokens((4, 4), 0, 0, TURNED)


@pytest.mark.parametrize(("name", "width"), [("activated", 6), ("normalized", 6), ("projected", 4)])
def test_unknown_operations_that_work_position_by_position_keep_the_grid(name: str, width: int) -> None:
    model = network(getattr(torch.ops.unheard, name), width)
    assert verdict(model) == Tokens((4, 4), 0)


@pytest.mark.parametrize("name", ["accumulated", "mixed", "halved"])
def test_positions_behind_unknown_mixtures_are_refused_by_name_and_left_out_of_the_choice(name: str) -> None:
    model = network(lambda tokens: Own.apply(tokens, name))
    assert GradCAM(model).explain(images(2)).layers[0] in ("first", "patch")
    with pytest.raises(ShapeError, match=rf"layer 'norm' .*are lost after.*unheard\.{name}.*reshape="):
        GradCAM(model, "norm")(images(2))


def test_beside_a_residual_connection_the_places_are_known() -> None:
    assert verdict(network(torch.ops.unheard.mixed, residual=True)) == Tokens((4, 4), 0)


def test_an_operation_of_torch_without_a_rule_is_not_taken_for_one_that_works_value_by_value() -> None:
    model = network(lambda tokens: torch.fft.fft(tokens, dim=1).real)
    assert "are lost after" in verdict(model)
    assert "_fft" in verdict(model)


def test_without_any_other_layer_the_error_names_the_operation() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.fc(m.norm(Own.apply(x.flatten(2).mT, "mixed")).mean(1))

    model = build(forward, norm=nn.LayerNorm(3), fc=nn.Linear(3, 3))
    with pytest.raises(LayerNotFoundError, match=r"unheard\.mixed"):
        GradCAM(model)(images(2))


def test_windows_that_overlap_are_added_around_their_places() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        maps = m.patch(x)
        columns = torch.nn.functional.unfold(maps, 3, padding=1)
        return m.fc(m.norm(torch.nn.functional.fold(columns, (4, 4), 3, padding=1).movedim(1, -1)).mean((1, 2)))

    model = build(forward, patch=nn.Conv2d(3, 6, 4, 4), norm=nn.LayerNorm(6), fc=nn.Linear(6, 3)).eval()
    assert verdict(model) == ChannelsLast()


def test_rows_of_a_recurrent_layer_keep_their_places_and_its_last_state_has_none() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        maps = m.patch(x).movedim(1, -1)
        rows, _ = m.rnn(maps.flatten(0, 1))
        return m.fc(m.norm(rows.unflatten(0, (len(x), 4))).mean((1, 2)))

    parts = {"patch": nn.Conv2d(3, 6, 4, 4), "norm": nn.LayerNorm(6), "fc": nn.Linear(6, 3)}
    model = build(forward, **parts, rnn=nn.LSTM(6, 3, batch_first=True, bidirectional=True)).eval()
    assert verdict(model) == ChannelsLast()
