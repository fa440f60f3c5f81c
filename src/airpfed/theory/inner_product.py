"""The space in which the theory moves: all adapters of a run, weighted as F weighs them.

A direction has a shared part, a part a task and a part a device (what is never sent). With q_n = D_n/D and w_k = D_k/D,

    <a, b> = <a_s, b_s> + sum_n q_n <a_n, b_n> + sum_k w_k <a_k, b_k>,

so that dF(W)[v] = <grad F, v> and Lambda = ||grad F||^2 of (42). Everything is float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """How F weighs: device D_k/D, within D_k/D_n, task D_n/D; task_of: each device's task."""

    device: Float[Tensor, " K"]
    within: Float[Tensor, " K"]
    task: Float[Tensor, " N"]
    task_of: Int[Tensor, " K"]


@dataclass(frozen=True)
class Stack:
    """One row a device of all that moves: its gradient of F_k, say. personal: of task scope; own: of device scope."""

    shared: Float[Tensor, "K d_s"]
    personal: Float[Tensor, "K d_p"]
    own: Float[Tensor, "K d_o"]


@dataclass(frozen=True)
class Direction:
    """A direction, or a point: shared part, one row a task, one row a device."""

    shared: Float[Tensor, " d_s"]
    personal: Float[Tensor, "N d_p"]
    own: Float[Tensor, "K d_o"]

    def __add__(self, other: "Direction") -> "Direction":
        """Part by part."""
        return Direction(self.shared + other.shared, self.personal + other.personal, self.own + other.own)

    def __mul__(self, factor: float) -> "Direction":
        """Every part times a number."""
        return Direction(factor * self.shared, factor * self.personal, factor * self.own)

    def __sub__(self, other: "Direction") -> "Direction":
        """Part by part."""
        return self + other * -1.0


def weights_of(samples: Float[Tensor, " K"], task_of: Int[Tensor, " K"], tasks: int) -> Weights:
    """The weights of devices that hold D_k samples each; a task without samples weighs nothing."""
    counts = samples.double()
    task = torch.zeros(tasks, dtype=torch.float64).index_add(0, task_of, counts)
    return Weights(counts / counts.sum(), counts / task[task_of], task / task.sum(), task_of)


def averaged(weights: Weights, rows: Stack) -> Direction:
    """(sum_k D_k/D g_k^s, sum over K_n of D_k/D_n g_k^p, g_k of device scope): of the grad F_k it is grad F."""
    personal = rows.personal.double() * weights.within[:, None]
    tasks = torch.zeros(len(weights.task), personal.shape[1], dtype=torch.float64)
    return Direction(
        weights.device @ rows.shared.double(), tasks.index_add(0, weights.task_of, personal), rows.own.double()
    )


def inner(weights: Weights, a: Direction, b: Direction) -> tuple[float, float]:
    """<a, b> in two parts: of what is shared, and of the rest (E1 and E2 are such parts)."""
    shared = float(a.shared @ b.shared)
    personal = float(weights.task @ (a.personal * b.personal).sum(1))
    return shared, personal + float(weights.device @ (a.own * b.own).sum(1))


def dot(weights: Weights, a: Direction, b: Direction) -> float:
    """<a, b>."""
    return sum(inner(weights, a, b))


def square(weights: Weights, a: Direction) -> float:
    """||a||^2: of grad F it is Lambda, (42)."""
    return dot(weights, a, a)


def printed_square(weights: Weights, a: Direction) -> float:
    """||sum_n D_n/D a_n||^2, p-parts of different tasks added entry by entry: how (39) and (40) print it.

    At most `square`, by Jensen.
    """
    added = a.shared, weights.task @ a.personal, weights.device @ a.own
    return sum(float(part.square().sum()) for part in added)


def power(weights: Weights, rows: Stack) -> float:
    """sum_k D_k/D ||g_k||^2: at least the square of the average, by Jensen; the rest is what devices disagree in."""
    each = sum(part.double().square().sum(1) for part in (rows.shared, rows.personal, rows.own))
    return float(weights.device @ each)


def alike(gradient: Float[Tensor, "K d"], energy: Float[Tensor, " K"], members: Tensor) -> float:
    """Mean correlation of the mini-batch gradients of some devices, mini-batches independent given the gradients.

    gradient: grad F_k; energy: E||g_k||^2. Mean over pairs of <grad F_j, grad F_k> / sqrt(E||g_j||^2 E||g_k||^2), 0
    where there is no pair.
    """
    rows = gradient[members] / energy[members].clamp_min(1e-300).sqrt()[:, None]
    count = len(rows)
    pairs = float(rows.sum(0).square().sum() - rows.square().sum())
    return pairs / (count * (count - 1)) if count > 1 else 0.0
