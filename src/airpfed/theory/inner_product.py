"""Lambda = ||grad F||^2 of (42), and the inner product of F: all adapters of a run, with the weights of F.

A direction has a shared part, a part per task, and a part per device (never sent). With q_n = D_n/D and w_k = D_k/D,

    <a, b> = <a_s, b_s> + sum_n q_n <a_n, b_n> + sum_k w_k <a_k, b_k>,

so that dF(W)[v] = <grad F, v>. Everything is float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """The weights of F. device: D_k/D. in_task: D_k/D_n. task: D_n/D. task_of: each device's task."""

    device: Float[Tensor, " K"]
    in_task: Float[Tensor, " K"]
    task: Float[Tensor, " N"]
    task_of: Int[Tensor, " K"]


@dataclass(frozen=True)
class Stack:
    """One row per device over all trained parameters, for example grad F_k.

    shared, personal, local: columns of scope global, task and device.
    """

    shared: Float[Tensor, "K d_s"]
    personal: Float[Tensor, "K d_p"]
    local: Float[Tensor, "K d_o"]


@dataclass(frozen=True)
class Direction:
    """A direction or a point. personal: one row per task. local: one row per device."""

    shared: Float[Tensor, " d_s"]
    personal: Float[Tensor, "N d_p"]
    local: Float[Tensor, "K d_o"]

    def __add__(self, other: "Direction") -> "Direction":
        """The sum, part by part."""
        return Direction(self.shared + other.shared, self.personal + other.personal, self.local + other.local)

    def __mul__(self, factor: float) -> "Direction":
        """Every part times a number."""
        return Direction(factor * self.shared, factor * self.personal, factor * self.local)

    def __sub__(self, other: "Direction") -> "Direction":
        """The difference, part by part."""
        return self + other * -1.0


def weights_of(samples: Float[Tensor, " K"], task_of: Int[Tensor, " K"], tasks: int) -> Weights:
    """The weights of devices with D_k samples each; a task without samples has weight 0. tasks: number of tasks."""
    counts = samples.double()
    task = torch.zeros(tasks, dtype=torch.float64).index_add(0, task_of, counts)
    return Weights(counts / counts.sum(), counts / task[task_of], task / task.sum(), task_of)


def weighted_average(weights: Weights, rows: Stack) -> Direction:
    """(sum_k D_k/D g_k^s, sum over K_n of D_k/D_n g_k^p, g_k of device scope): grad F if the rows are grad F_k."""
    personal = rows.personal.double() * weights.in_task[:, None]
    tasks = torch.zeros(len(weights.task), personal.shape[1], dtype=torch.float64)
    return Direction(
        shared=weights.device @ rows.shared.double(),
        personal=tasks.index_add(0, weights.task_of, personal),
        local=rows.local.double(),
    )


def dot_parts(weights: Weights, a: Direction, b: Direction) -> tuple[float, float]:
    """<a, b> in two parts, of the shared part and of all other parts, as E1 and E2 of (38)."""
    shared = float(a.shared @ b.shared)
    personal = float(weights.task @ (a.personal * b.personal).sum(1))
    return shared, personal + float(weights.device @ (a.local * b.local).sum(1))


def dot(weights: Weights, a: Direction, b: Direction) -> float:
    """<a, b>."""
    return sum(dot_parts(weights, a, b))


def squared_norm(weights: Weights, a: Direction) -> float:
    """||a||^2; Lambda of (42) if a is grad F."""
    return dot(weights, a, a)


def printed_squared_norm(weights: Weights, a: Direction) -> float:
    """||sum_n D_n/D a_n||^2 as (39) and (40) print it: p-parts of different tasks are added entry by entry.

    At most `squared_norm`, by Jensen.
    """
    sums = a.shared, weights.task @ a.personal, weights.device @ a.local
    return sum(float(part.square().sum()) for part in sums)


def mean_power_of(weights: Weights, rows: Stack) -> float:
    """sum_k D_k/D ||g_k||^2, which is the squared norm of the average plus the variance between devices."""
    energy = sum(part.double().square().sum(1) for part in (rows.shared, rows.personal, rows.local))
    return float(weights.device @ energy)


def gradient_correlation(gradient: Float[Tensor, "K d"], energy: Float[Tensor, " K"], members: Tensor) -> float:
    """Mean correlation of the mini-batch gradients of some devices; mini-batches of different devices are independent.

    gradient: grad F_k. energy: E||g_k||^2. members: the devices. The mean is over pairs, of <grad F_j, grad F_k> /
    sqrt(E||g_j||^2 E||g_k||^2); 0 if there is no pair.
    """
    rows = gradient[members] / energy[members].clamp_min(1e-300).sqrt()[:, None]
    count = len(rows)
    pairs = float(rows.sum(0).square().sum() - rows.square().sum())
    return pairs / (count * (count - 1)) if count > 1 else 0.0
