"""Optimizers of the servers by name.

A row is a function `(lr, *, options) -> (init, update)`. `init(value)` gives the state of fresh parameters, tensors of
the same shape by name; it must not depend on `lr`. `update(gradient, state, value, count)` gives the new value and
state. Parameters are rows, one per copy: value, gradient and state tensors (copies, d); count (copies) is the number of
the update, from 1. RowDict must not influence one another: the copies of absent tasks and devices do not move.
"""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from airpfed.core.rows import RowDict

OptimizerState = Mapping[str, Tensor]
"""Name -> tensor of the shape of the parameters."""
Init = Callable[[Float[Tensor, "copies d"]], OptimizerState]
Update = Callable[
    [Float[Tensor, "copies d"], OptimizerState, Float[Tensor, "copies d"], Int[Tensor, " copies"]],
    tuple[Float[Tensor, "copies d"], OptimizerState],
]

Decay = Annotated[float, Field(ge=0, lt=1)]
FirstDecay = Annotated[Decay, Field(description="decay of the mean of the gradients")]
SecondDecay = Annotated[Decay, Field(description="decay of the mean of their squares")]
Epsilon = Annotated[
    float, Field(gt=0, le=1, description="added to the root mean square; LoRA gradients can be smaller than 1e-8")
]


def adam(
    lr: float,
    *,
    beta1: FirstDecay = 0.9,
    beta2: SecondDecay = 0.999,
    epsilon: Epsilon = 1e-12,
) -> tuple[Init, Update]:
    """Adam with bias correction, on the received gradient (Kingma and Ba, ICLR 2015)."""

    def init(value: Tensor) -> OptimizerState:
        return {"first": torch.zeros_like(value), "second": torch.zeros_like(value)}

    def update(gradient: Tensor, state: OptimizerState, value: Tensor, count: Tensor) -> tuple[Tensor, OptimizerState]:
        first = beta1 * state["first"] + (1 - beta1) * gradient
        second = beta2 * state["second"] + (1 - beta2) * gradient.square()
        correction = [(1 - beta ** count.double()).to(first.dtype)[:, None] for beta in (beta1, beta2)]
        mean, root_mean_square = first / correction[0], (second / correction[1]).sqrt()
        return value - lr * mean / (root_mean_square + epsilon), {"first": first, "second": second}

    return init, update


def adamw(
    lr: float,
    *,
    beta1: FirstDecay = 0.9,
    beta2: SecondDecay = 0.999,
    epsilon: Epsilon = 1e-12,
    weight_decay: Annotated[
        float, Field(ge=0, le=1, description="every update also takes lr weight_decay of each parameter away")
    ] = 0.01,
) -> tuple[Init, Update]:
    """Adam with decoupled weight decay, as torch.optim.AdamW (Loshchilov and Hutter, ICLR 2019)."""
    init, step = adam(lr, beta1=beta1, beta2=beta2, epsilon=epsilon)

    def update(gradient: Tensor, state: OptimizerState, value: Tensor, count: Tensor) -> tuple[Tensor, OptimizerState]:
        return step(gradient, state, value * (1 - lr * weight_decay), count)

    return init, update


def sgd(
    lr: float,
    *,
    momentum: Annotated[Decay, Field(description="decay of the velocity; 0: the plain SGD of the theory")] = 0.0,
) -> tuple[Init, Update]:
    """SGD, with momentum as in torch.optim.SGD: velocity = momentum velocity + gradient; value -= lr velocity.

    On the pseudo-gradients of several local steps, momentum is that of FedAvgM (Hsu, Qi and Brown, 2019).
    """

    def init(value: Tensor) -> OptimizerState:
        return {"velocity": torch.zeros_like(value)} if momentum else {}

    def update(gradient: Tensor, state: OptimizerState, value: Tensor, count: Tensor) -> tuple[Tensor, OptimizerState]:
        if not momentum:
            return value - lr * gradient, {}
        velocity = momentum * state["velocity"] + gradient
        return value - lr * velocity, {"velocity": velocity}

    return init, update


OPTIMIZERS: RowDict[Callable[..., tuple[Init, Update]]] = RowDict(
    "optimizer", {"adam": adam, "adamw": adamw, "sgd": sgd}, wrap=lambda function: function, function=lambda row: row
)
"""The optimizers that `server.optimizer` knows."""
