"""The server's update: exact SGD, torch's Adam, and copies that do not move stay as they are."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.training.checkpoint import tensors_of
from airpfed.training.optimizers import OPTIMIZERS
from airpfed.training.state import OptimizedParameters, ServerStep, initial_parameters, update, update_active


def moving(copies: int, d: int, optimizer: str = "adam", seed: int = 0, **options: float) -> OptimizedParameters:
    value = torch.randn(copies, d, generator=torch.Generator().manual_seed(seed))
    return initial_parameters(value, ServerStep(optimizer, 0.1, options))


def slopes(steps: int, copies: int, d: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(steps, copies, d, generator=torch.Generator().manual_seed(1))


def same(a: OptimizedParameters, b: OptimizedParameters, rows: slice) -> bool:
    pairs = zip(tensors_of(a).values(), tensors_of(b).values(), strict=True)
    return all(torch.equal(one[rows], other[rows]) for one, other in pairs)


def test_sgd_is_exact() -> None:
    start, (slope,) = moving(2, 50, "sgd"), slopes(1, 2, 50)
    after = update(start, slope, torch.tensor([True, True]), ServerStep("sgd", 0.1))
    assert torch.equal(after.value, start.value - 0.1 * slope)
    assert after.updates.tolist() == [1, 1]


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-9])
def test_adam_is_torchs(scale: float) -> None:
    """To 1e-4 of a step, the rounding of values near 1, also for gradients far below the usual epsilon of 1e-8."""
    start, lr = moving(1, 200), 0.01
    twin = torch.nn.Parameter(start.value.clone())
    optimizer = torch.optim.Adam([twin], lr=lr, eps=1e-12)
    now = start
    for slope in slopes(8, 1, 200, scale):
        now = update(now, slope, torch.tensor([True]), ServerStep("adam", lr))
        twin.grad = slope.clone()
        optimizer.step()
        torch.testing.assert_close(now.value, twin.detach(), rtol=0, atol=1e-4 * lr)
    assert (now.value - start.value).abs().mean() > lr


@pytest.mark.parametrize("decay", [0.01, 0.5])
def test_adamw_is_torchs(decay: float) -> None:
    """With its default decay, and one that a step cannot hide; decay 0 is Adam to the bit."""
    start, lr, options = moving(1, 200, "adamw"), 0.03, {"weight_decay": decay}
    twin = torch.nn.Parameter(start.value.clone())
    optimizer = torch.optim.AdamW([twin], lr=lr, eps=1e-12, weight_decay=decay)
    now = bare = adam = start
    for slope in slopes(8, 1, 200):
        now = update(now, slope, torch.tensor([True]), ServerStep("adamw", lr, options))
        bare = update(bare, slope, torch.tensor([True]), ServerStep("adamw", lr, {"weight_decay": 0.0}))
        adam = update(adam, slope, torch.tensor([True]), ServerStep("adam", lr))
        twin.grad = slope.clone()
        optimizer.step()
        torch.testing.assert_close(now.value, twin.detach(), rtol=0, atol=1e-4 * lr)
    assert torch.equal(bare.value, adam.value)
    assert (now.value - adam.value).abs().max() > 1e-2 * lr, "the decay is long enough to tell"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_copies_that_do_not_move_stay_bit_identical(optimizer: str) -> None:
    """Also where their row of the gradient is not a number; the others do not notice."""
    now, alone = moving(3, 20, optimizer), moving(3, 20, optimizer)
    for t, slope in enumerate(slopes(5, 3, 20)):
        before = now
        moves = torch.tensor([True, t % 2 == 0, False])
        bad = torch.where(moves[:, None], slope, torch.nan)
        now = update(now, bad, moves, ServerStep(optimizer, 0.1))
        alone = update(alone, slope, torch.tensor([True, True, True]), ServerStep(optimizer, 0.1))
        assert same(now, before, slice(2, 3)) and same(now, alone, slice(0, 1))
        assert same(now, before, slice(1, 2)) == (t % 2 == 1)
    assert now.updates.tolist() == [5, 3, 0], "Adam's bias correction counts a copy's own updates"


def test_nothing_to_move_is_no_trouble() -> None:
    """A method that shares nothing has a shared vector of length 0."""
    empty = update(moving(1, 0), torch.zeros(1, 0), torch.tensor([True]), ServerStep("adam", 0.1))
    assert empty.value.shape == (1, 0)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_parts_in_turn_move_as_if_each_were_alone(optimizer: str) -> None:
    """Moments and bias correction are of the part's own updates; a turn that is lost is not counted."""
    whole, parts = moving(1, 20, optimizer), (slice(0, 12), slice(12, 20))
    now = replace(whole, updates=torch.zeros(1, 2, dtype=torch.long))
    alone = [initial_parameters(whole.value[:, p], ServerStep(optimizer, 0.1)) for p in parts]
    for t, slope in enumerate(slopes(7, 1, 20)):
        turn, moves = t % 2, torch.tensor([t != 4])
        part = parts[turn]
        now = update_active(now, turn, (part.start, part.stop), slope, moves, ServerStep(optimizer, 0.1))
        alone[turn] = update(alone[turn], slope[:, part], moves, ServerStep(optimizer, 0.1))
    assert now.updates.tolist() == [[3, 3]]
    for part, one in zip(parts, alone, strict=True):
        assert torch.equal(now.value[:, part], one.value)
        assert all(
            torch.equal(now.optimizer_state[key][:, part], tensor) for key, tensor in one.optimizer_state.items()
        )


def test_momentum_is_torchs() -> None:
    start, options = moving(1, 60, "sgd", momentum=0.9), {"momentum": 0.9}
    twin = torch.nn.Parameter(start.value.clone())
    optimizer = torch.optim.SGD([twin], lr=0.1, momentum=0.9)
    now = start
    for slope in slopes(5, 1, 60):
        now = update(now, slope, torch.tensor([True]), ServerStep("sgd", 0.1, options))
        twin.grad = slope.clone()
        optimizer.step()
    torch.testing.assert_close(now.value, twin.detach(), rtol=1e-6, atol=1e-6)


def test_a_state_of_another_shape_is_refused_before_round_1(monkeypatch) -> None:
    def flat(lr: float):
        return (lambda value: {"mean": torch.zeros(3)}), (lambda gradient, state, value, count: (value, state))

    monkeypatch.setitem(OPTIMIZERS, "flat", flat)
    with pytest.raises(UserError, match=r"^server.optimizer: flat keeps mean of shape \(3,\); should be"):
        moving(2, 5, "flat")


@pytest.mark.parametrize("functions", [None, lambda value: {}, (1, 2), (lambda value: {},)])
def test_an_optimizer_gives_two_functions(functions: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS.data, "mine", lambda lr: functions)
    with pytest.raises(
        UserError, match=r'server.optimizer = "mine": should return two functions \(init, update\), not'
    ):
        ServerStep("mine", 0.1).rule(0.1)
