"""The contract of optimizers: our rows keep it, and an optimizer of a user that breaks it is told how."""

import pytest
import torch

from airpfed import testing
from airpfed.training.optimizers import OPTIMIZERS, sgd


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in OPTIMIZERS), ("sgd", {"momentum": 0.9}), ("adam", {"beta2": 0.9})]
)
def test_our_optimizers_keep_the_contract(name, options):
    report = testing.check_optimizer(name, **options)
    assert report.ok, str(report)


def decayed(lr, *, decay: float = 0.01):
    """SGD with weight decay, as a user would write it."""
    init, update = sgd(lr)

    def step(gradient, state, value, count):
        return update(gradient + decay * value, state, value, count)

    return init, step


def test_a_users_function():
    report = testing.check_optimizer(decayed, decay=0.1)
    assert report.ok, str(report)
    assert str(report).startswith("optimizer decayed(decay=0.1): all 12 checks pass")


def stateless(step):
    """An optimizer without a state; step: (lr, gradient, value, count) -> value."""

    def optimizer(lr):
        return lambda value: {}, lambda gradient, state, value, count: (step(lr, gradient, value, count), {})

    return optimizer


def ascends(lr, gradient, value, count):
    return value + lr * gradient


def clips_all_copies_together(lr, gradient, value, count):
    return value - lr * gradient / gradient.norm().clamp_min(1.0)


def in_place(lr, gradient, value, count):
    return value.sub_(lr * gradient)


def never_moves(lr, gradient, value, count):
    return value.clone()


def normalised_gradient(lr, gradient, value, count):
    return value - lr * gradient / gradient.norm(dim=1, keepdim=True)


def drifts(lr, gradient, value, count):
    return value - lr * gradient + 1e-4


def noisy(lr, gradient, value, count):
    return value - lr * gradient * (1 + 0.1 * torch.randn(1))


def exponential(lr, gradient, value, count):
    return value - lr * gradient.sign() * (gradient.abs().exp() - 1)


def one_width(lr, gradient, value, count):
    return value - lr * gradient * torch.ones(7)


def double_precision(lr, gradient, value, count):
    return value.double() - lr * gradient


def remembers(lr):
    """The number of updates in a closure."""
    updates = [0]

    def update(gradient, state, value, count):
        updates[0] += 1
        return value - lr / updates[0] * gradient, {}

    return lambda value: {}, update


def scalar_state(lr):
    def update(gradient, state, value, count):
        return value - lr * gradient, {"norm": gradient.norm(dim=1)}

    return lambda value: {"norm": torch.zeros(len(value))}, update


def init_with_lr(lr):
    _, update = sgd(lr, momentum=0.9)
    return lambda value: {"velocity": lr * torch.ones_like(value)}, update


def renames_its_state(lr):
    return lambda value: {"first": torch.zeros_like(value)}, lambda gradient, state, value, count: (
        value - lr * gradient,
        {"second": gradient},
    )


@pytest.mark.parametrize(
    ("optimizer", "check", "words"),
    [
        (stateless(ascends), "descends", "times what it was"),
        (stateless(clips_all_copies_together), "a copy by itself", "reduce over the last axis only"),
        (stateless(in_place), "arguments are not changed", "update changes its value in place"),
        (stateless(never_moves), "takes a step", "a gradient does not move the value"),
        (stateless(normalised_gradient), "no step without a gradient", "infinite or NaN"),
        (stateless(drifts), "no step without a gradient", "away from 0 by 0.0001"),
        (stateless(noisy), "deterministic", "two runs with the same gradients differ"),
        (stateless(double_precision), "takes a step", "not (3, 7) torch.float64"),
        (stateless(exponential), "finite", "with gradients of 1e+06, "),
        (stateless(one_width), "some of the columns", "raises RuntimeError"),
        (remembers, "all memory is in the state", "keep memory in the state"),
        (scalar_state, "shapes of the state", "norm is (3,) torch.float32; should have the shape"),
        (init_with_lr, "init without the learning rate", "lr = 1 and lr = 0.001"),
        (renames_its_state, "takes a step", "update returns the state ['second']"),
    ],
)
def test_a_planted_fault_is_named(optimizer, check, words):
    report = testing.check_optimizer(optimizer)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]


def test_absent_copies_are_checked(monkeypatch):
    """The training state keeps absent copies; one that does not shows that the check looks."""
    from airpfed.testing import optimizers

    def forgetful(parameters, gradient, mask, step, update=optimizers.update):
        return update(parameters, gradient, torch.ones_like(mask), step)

    monkeypatch.setattr(optimizers, "update", forgetful)
    assert [result.name for result in testing.check_optimizer("adam").failures] == ["absent copies"]
