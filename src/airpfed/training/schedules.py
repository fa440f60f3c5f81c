"""Schedules of the servers' learning rate by name, with the names and options of torch.optim.lr_scheduler.

A row is a function `(lr, t, rounds, *, options) -> learning rate of round t`. lr: `server.lr`. t: number of the round,
from 1 to rounds. It is a pure function, so that a resumed run, and a device of a federation, has the same rate in every
round. Every row of ours begins with `warmup` rounds in which the rate rises, as torch's LinearLR with start_factor =
1 / (warmup + 1) does.
"""

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from airpfed.core.rows import RowDict

Schedule = Callable[[float, int, int], float]
"""(lr, t, rounds) -> learning rate of round t."""

Warmup = Annotated[
    int, Field(ge=0, le=10_000_000, description="rounds in which the rate rises, from lr / (warmup + 1) to lr")
]
Length = Annotated[
    int, Field(ge=0, le=10_000_000, description="rounds of the fall, after which its end holds; 0: to the last round")
]


def constant(lr: float, t: int, rounds: int, *, warmup: Warmup = 0) -> float:
    """The same rate in every round, after the warm-up."""
    return lr if t > warmup else lr * t / (warmup + 1)


def linear(
    lr: float,
    t: int,
    rounds: int,
    *,
    start_factor: Annotated[float, Field(ge=0, le=1e6, description="factor of lr after the warm-up")] = 1.0,
    end_factor: Annotated[float, Field(ge=0, le=1e6, description="factor of lr after total_iters rounds")] = 0.0,
    total_iters: Length = 0,
    warmup: Warmup = 0,
) -> float:
    """A straight line, as torch's LinearLR: the factor goes from start_factor to end_factor in total_iters rounds."""
    if t <= warmup:
        return lr * start_factor * t / (warmup + 1)
    share = _share(t, total_iters or rounds - warmup, warmup)
    return lr * (start_factor + (end_factor - start_factor) * share)


def cosine(
    lr: float,
    t: int,
    rounds: int,
    *,
    T_max: Length = 0,
    eta_min: Annotated[float, Field(ge=0, le=1e38, description="learning rate at the end of the fall")] = 0.0,
    warmup: Warmup = 0,
) -> float:
    """Half a period of a cosine, as torch's CosineAnnealingLR: from lr to eta_min in T_max rounds."""
    if t <= warmup:
        return lr * t / (warmup + 1)
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * _share(t, T_max or rounds - warmup, warmup))) / 2


def _share(t: int, length: int, warmup: int) -> float:
    """Share of a fall of `length` rounds that lies before round t, from 0 in the round after the warm-up to 1."""
    return min(1.0, (t - 1 - warmup) / max(1, length))


SCHEDULES: RowDict[Callable[..., float]] = RowDict(
    "schedule",
    {"constant": constant, "linear": linear, "cosine": cosine},
    wrap=lambda function: function,
    function=lambda row: row,
)
"""The schedules that `server.schedule` knows."""
