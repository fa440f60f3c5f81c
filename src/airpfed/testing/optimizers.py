"""The contract of an optimizer of the servers, checked on a few rows of parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from airpfed.testing.report import (
    Report,
    clone_tensors,
    largest_relative_difference,
    require,
    run_checks,
    subject_of,
    tensors_equal,
    with_global_seeds,
)
from airpfed.training.optimizers import Init, Update
from airpfed.training.state import OptimizedParameters, ServerStep, initial_parameters, update, update_active

LR = 0.05
"""The learning rate of the checks."""
COPIES, WIDTH = 3, 7


def check_optimizer(optimizer: Callable[..., tuple[Init, Update]] | str, **options: Any) -> Report:
    """Check an optimizer of the servers: everything that the training loop, a resumed run and absent tasks rely on.

    optimizer: a function `(lr, *, options) -> (init, update)`, or the name of a row of `OPTIMIZERS`. options: its
    options. Raises UserError for a function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> testing.check_optimizer("sgd", momentum=0.9).ok
    True
    """
    subject = subject_of("optimizers", optimizer, options)
    trial = OptimizerTrial(subject.function)
    return run_checks(
        subject,
        [
            ("takes a step", trial.takes_a_step),
            ("shapes of the state", trial.state_shapes),
            ("init without the learning rate", trial.init_without_lr),
            ("arguments are not changed", trial.arguments_unchanged),
            ("deterministic", trial.deterministic),
            ("a copy by itself", trial.independent_copies),
            ("absent copies", trial.absent_copies),
            ("all memory is in the state", trial.memory),
            ("some of the columns", trial.active_columns),
            ("no step without a gradient", trial.zero_gradient),
            ("finite", trial.finite),
            ("descends", trial.descends),
        ],
    )


@dataclass(frozen=True)
class BoundStep(ServerStep):
    """A step of the servers with a function in place of the name of a row."""

    function: Callable[..., tuple[Init, Update]] | None = None

    def rule(self, lr: float) -> tuple[Init, Update]:
        """The functions (init, update) at a learning rate."""
        assert self.function is not None
        return self.function(lr)


def random_rows(seed: int, scale: float = 1.0) -> Tensor:
    """Rows of parameters or gradients, float32."""
    return scale * torch.randn(COPIES, WIDTH, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class OptimizerTrial:
    """An optimizer with its options set."""

    function: Callable[..., tuple[Init, Update]]

    @property
    def step(self) -> ServerStep:
        """The optimizer as the servers call it."""
        return BoundStep("", LR, function=self.function)

    def run(self, value: Tensor, gradients: list[Tensor], mask: Tensor | None = None) -> OptimizedParameters:
        """The parameters after the updates, from fresh ones."""
        parameters = initial_parameters(value, self.step)
        everyone = torch.ones(len(value), dtype=torch.bool)
        for gradient in gradients:
            parameters = update(parameters, gradient, everyone if mask is None else mask, self.step)
        return parameters

    def takes_a_step(self) -> str:
        """`init` gives a dict of tensors, `update` a value and a state with the same names."""
        functions = self.function(LR)
        require(
            isinstance(functions, tuple) and len(functions) == 2 and all(map(callable, functions)),
            "should return two functions, (init, update)",
        )
        init, change = functions
        value = random_rows(1)
        state = init(value)
        new = change(random_rows(2), state, value, torch.ones(COPIES, dtype=torch.long))
        require(isinstance(new, tuple) and len(new) == 2, "update should return (value, state)")
        require(
            isinstance(new[0], Tensor) and new[0].shape == value.shape and new[0].dtype == value.dtype,
            f"update should return a value of shape {tuple(value.shape)} {value.dtype}, not {form(new[0])}",
        )
        require(bool((new[0] != value).any()), "a gradient does not move the value")
        require(
            dict(new[1]).keys() == dict(state).keys(),
            f"update returns the state {sorted(new[1])}; should have the names of init, {sorted(state)}",
        )
        return ""

    def state_shapes(self) -> str:
        """Every tensor of the state has the shape of the parameters, before and after an update."""
        init, change = self.function(LR)
        value = random_rows(1)
        state = init(value)
        after = change(random_rows(2), state, value, torch.ones(COPIES, dtype=torch.long))[1]
        for moment, tensors in (("init", state), ("update", after)):
            for name, tensor in tensors.items():
                shape = tuple(value.shape)
                require(
                    isinstance(tensor, Tensor) and tensor.shape == value.shape,
                    f"{moment}: {name} is {form(tensor)}; should have the shape of the parameters, {shape}",
                )
        return f"{len(state)} tensors"

    def init_without_lr(self) -> str:
        """`init` gives the same state for every learning rate, because the probe may set the rate later."""
        states = [self.function(lr)[0](random_rows(1)) for lr in (1.0, 1e-3)]
        require(tensors_equal(*states), "init gives other states for lr = 1 and lr = 0.001")
        return ""

    def arguments_unchanged(self) -> str:
        """`update` and `init` leave their arguments as they are: absent copies are restored from them."""
        init, change = self.function(LR)
        value, gradient, count = random_rows(1), random_rows(2), torch.ones(COPIES, dtype=torch.long)
        state = clone_tensors(init(value))
        arguments = {"gradient": gradient, "state": state, "value": value, "count": count}
        copies = {name: clone_tensors(argument) for name, argument in arguments.items()}
        change(gradient, state, value, count)
        for name, argument in arguments.items():
            require(tensors_equal(argument, copies[name]), f"update changes its {name} in place")
        return ""

    def deterministic(self) -> str:
        """The same gradients give the same bits, whatever the global generators hold."""
        gradients = [random_rows(seed) for seed in range(3)]
        first, second = with_global_seeds(lambda: self.run(random_rows(9), gradients).value)
        difference = largest_relative_difference(first, second)
        require(difference == 0, f"two runs with the same gradients differ by {difference:.3g}")
        return "equal bits"

    def independent_copies(self) -> str:
        """A copy moves as it would alone, even beside copies with huge or infinite gradients."""
        gradients = [random_rows(seed) for seed in range(3)]
        alone = self.run(random_rows(9)[:1], [gradient[:1] for gradient in gradients]).value
        for description, scale in (("others", 1.0), ("gradients of 10^6", 1e6), ("NaN", float("nan"))):
            beside = [torch.cat([gradient[:1], scale * gradient[1:]]) for gradient in gradients]
            difference = largest_relative_difference(self.run(random_rows(9), beside).value[:1], alone)
            require(
                difference <= 1e-5,
                f"a copy beside {description} ends {difference:.3g} away from where it ends alone, relative to its "
                "value: reduce over the last axis only",
            )
        return ""

    def absent_copies(self) -> str:
        """A copy that is absent does not change at all, neither its value nor its state."""
        gradients = [random_rows(seed) for seed in range(3)]
        before = self.run(random_rows(9), gradients)
        mask = torch.tensor([True, False, True])
        after = update(before, random_rows(4), mask, self.step)
        same = [(after.value, before.value)]
        same += [(after.optimizer_state[name], before.optimizer_state[name]) for name in before.optimizer_state]
        for new, old in same:
            require(tensors_equal(new[1], old[1]), "an absent copy changes")
        present = largest_relative_difference(
            after.value[0], self.run(random_rows(9), [*gradients, random_rows(4)]).value[0]
        )
        require(present <= 1e-5, "a present copy moves otherwise where another copy is absent")
        return "equal bits"

    def memory(self) -> str:
        """A run that stops and goes on from the stored state gives the same bits: functions remember nothing."""
        gradients = [random_rows(seed) for seed in range(4)]
        rule = self.function(LR)
        value, state = random_rows(9), dict(rule[0](random_rows(9)))
        for number, gradient in enumerate(gradients, 1):
            value, changed = rule[1](gradient, state, value, torch.full((COPIES,), number))
            state = dict(changed)
        resumed = self.run(random_rows(9), gradients).value
        difference = largest_relative_difference(resumed, value)
        require(
            difference == 0,
            f"with fresh functions before every update the value differs by {difference:.3g}: keep memory in the state "
            "and take the number of updates from `count`",
        )
        return "equal bits"

    def active_columns(self) -> str:
        """Where factors alternate, the columns of the other phase and their state stay as they are."""
        parameters = initial_parameters(random_rows(9), self.step, (2,))
        for t, columns in ((0, (0, 4)), (1, (4, WIDTH)), (0, (0, 4))):
            before = clone_tensors(parameters)
            parameters = update_active(
                parameters, t, columns, random_rows(t), torch.ones(COPIES, dtype=torch.bool), self.step
            )
            idle = [column for column in range(WIDTH) if not columns[0] <= column < columns[1]]
            require(
                tensors_equal(parameters.value[:, idle], before.value[:, idle]), "columns of the other phase change"
            )
            require(bool(parameters.value.isfinite().all()), "parameters are infinite or NaN where factors alternate")
        return ""

    def zero_gradient(self) -> str:
        """From fresh parameters, a gradient of 0 moves no entry away from 0; weight decay may move it towards 0."""
        value = random_rows(9)
        moved = self.run(value, [torch.zeros_like(value)]).value
        require(bool(moved.isfinite().all()), "a gradient of 0 gives parameters that are infinite or NaN")
        excess = float((moved.abs() - value.abs()).max())
        require(excess <= 1e-9, f"a gradient of 0 moves a parameter away from 0 by {excess:.3g}")
        return ""

    def finite(self) -> str:
        """Gradients from 1e-12 to 1e6 give finite parameters and states."""
        for scale in (1e-12, 1.0, 1e6):
            parameters = self.run(random_rows(9), [random_rows(seed, scale) for seed in range(3)])
            for name, tensor in {"the value": parameters.value, **parameters.optimizer_state}.items():
                bad = int((~tensor.isfinite()).sum())
                require(bad == 0, f"with gradients of {scale:g}, {bad} entries of {name} are infinite or NaN")
        return ""

    def descends(self) -> str:
        """100 steps at lr 0.05 reduce the quadratic loss 1/2 sum_i c_i x_i^2, with c from 0.2 to 1."""
        curvature = torch.linspace(0.2, 1.0, WIDTH)
        parameters = initial_parameters(random_rows(9), self.step)
        start = (curvature * parameters.value.square()).sum(1)
        for _ in range(100):
            parameters = update(
                parameters, curvature * parameters.value, torch.ones(COPIES, dtype=torch.bool), self.step
            )
        ratio = float(((curvature * parameters.value.square()).sum(1) / start).max())
        require(ratio < 0.9, f"after 100 steps a quadratic loss is {ratio:.4g} times what it was")
        return f"to {ratio:.2g} of the loss"


def form(value: Any) -> str:
    """The shape and type of a tensor, or the type of anything else."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
