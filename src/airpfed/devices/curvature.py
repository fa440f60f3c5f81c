"""Hessians of the tasks' losses F_n in the adapters, by products with vectors: two backward passes each."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from airpfed.devices.fleet import Fleet, row_losses
from airpfed.devices.sweep import Group, deal, factors_of, together
from airpfed.model.vector import Vectors, flatten, unflatten
from airpfed.streams import stream
from airpfed.theory.constants import interval, lanczos, ritz_upper


@dataclass(frozen=True)
class Curvature:
    """The largest Hessian eigenvalue of any task at a point, and its 95 % interval."""

    beta: float
    low: float
    high: float


def curvature(fleet: Fleet, vectors: Vectors, samples: int, batch: int, steps: int, chunk: int) -> Curvature:
    """beta at a point: the largest eigenvalue over tasks of the Hessian of F_n in (W_s, W_p,n, what is never sent).

    samples: of each device, the first of a random order; 0: all. Where fewer than all are used the eigenvalue is too
    large in expectation (the largest eigenvalue is convex), and the interval adds what the curvature along the found
    vector varies by from group to group. Random: the start, stream (seed, "lanczos"); the order of samples.
    """
    dealt = [Group(k, rows) for k in range(len(fleet.shards)) for rows in deal(fleet, k, batch, samples)]
    tasks, size = len(fleet.classes), dimension(fleet)

    def apply(x: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        return product(fleet, vectors, dealt, x, chunk)[0]

    start = torch.randn(tasks, size, generator=stream(fleet.seed, "lanczos"), dtype=torch.float64)
    start = start * apply_mask(fleet)
    found = lanczos(apply, start, steps)
    _, along = product(fleet, vectors, dealt, found.vector, chunk)
    ends = []
    for n, (top, bottom) in enumerate(zip(found.top.tolist(), found.bottom.tolist(), strict=True)):
        own = torch.tensor(
            [value for group, value in zip(dealt, along, strict=True) if fleet.task_of[group.device] == n]
        )
        whole = sum(len(shard) for k, shard in enumerate(fleet.shards) if fleet.task_of[k] == n)
        used = sum(len(group.rows) for group in dealt if fleet.task_of[group.device] == n)
        half = interval(own.double(), round(len(own) * whole / used))[1] if used < whole else 0.0
        ends.append((top, top - half, ritz_upper(top + half, bottom, size, steps)))
    beta, low, high = (max(end[i] for end in ends) for i in range(3))
    return Curvature(beta, low, high)


def dimension(fleet: Fleet) -> int:
    """Entries of (W_s, W_p,n, a part a device of what is never sent)."""
    order = fleet.layout
    return order.size("global") + order.size("task") + len(fleet.shards) * order.size("device")


def apply_mask(fleet: Fleet) -> Float[Tensor, "N d"]:
    """1 on the entries that a task's loss can read: not the own parts of other tasks' devices."""
    order, tasks = fleet.layout, len(fleet.classes)
    head = torch.ones(tasks, order.size("global") + order.size("task"), dtype=torch.float64)
    mine = (fleet.task_of[None, :] == torch.arange(tasks)[:, None]).double()
    return torch.cat([head, mine.repeat_interleave(order.size("device"), dim=1)], 1)


def product(
    fleet: Fleet, vectors: Vectors, dealt: list[Group], x: Float[Tensor, "N d"], chunk: int
) -> tuple[Float[Tensor, "N d"], list[float]]:
    """H_n x_n of every task, and x_n H_j x_n of every group j of samples (group by group their mean is x_n H_n x_n).

    Parts that are never sent are scaled by the root of D_k/D_n, which makes the operator symmetric in the plain
    inner product and its eigenvalues those in the weights of F.
    """
    counts = torch.zeros(len(fleet.shards), dtype=torch.float64)
    share = torch.tensor([float(len(shard)) for shard in fleet.shards], dtype=torch.float64)
    for n in range(len(x)):
        share[fleet.task_of == n] /= share[fleet.task_of == n].sum()
    for group in dealt:
        counts[group.device] += len(group.rows)
    out, along = torch.zeros_like(x), [0.0] * len(dealt)
    for part in together(fleet, dealt, chunk):
        chosen = [dealt[index] for index in part]
        ways = torch.stack([row_of(fleet, x, group.device, share) for group in chosen])
        bent = hessian_rows(fleet, vectors, chosen, ways)
        for index, group, way, row in zip(part, chosen, ways, bent, strict=True):
            along[index] = float(way @ row)
            place(fleet, out, group.device, row * len(group.rows) / counts[group.device] * share[group.device], share)
    return out, along


def row_of(fleet: Fleet, x: Float[Tensor, "N d"], device: int, share: Float[Tensor, " K"]) -> Float[Tensor, " d_k"]:
    """The direction in which one device's factors move: shared, personal and own part."""
    n, (sent, own) = int(fleet.task_of[device]), cuts(fleet, device)
    return torch.cat([x[n, :sent], x[n, own] / share[device].sqrt()])


def place(
    fleet: Fleet, out: Float[Tensor, "N d"], device: int, row: Float[Tensor, " d_k"], share: Float[Tensor, " K"]
) -> None:
    """Add a device's row, times its share, to its task's product."""
    n, (sent, own) = int(fleet.task_of[device]), cuts(fleet, device)
    out[n, :sent] += row[:sent]
    out[n, own] += row[sent:] / share[device].sqrt()


def cuts(fleet: Fleet, device: int) -> tuple[int, slice]:
    """Columns of a task's vector: up to where it is sent, and those of one device's own part."""
    sent, width = fleet.layout.size("global") + fleet.layout.size("task"), fleet.layout.size("device")
    return sent, slice(sent + device * width, sent + (device + 1) * width)


def hessian_rows(
    fleet: Fleet, vectors: Vectors, groups: list[Group], ways: Float[Tensor, "G d_k"]
) -> Float[Tensor, "G d_k"]:
    """Each group's Hessian times its direction; plain attention, since the fused one has no second gradient."""
    order = fleet.layout
    sizes = [order.size("global"), order.size("task"), order.size("device")]
    shared, personal, own = torch.split(ways, sizes, dim=1)
    still = shared.new_zeros(len(groups), order.size("frozen"))
    moves = unflatten({"global": shared, "task": personal, "device": own, "frozen": still}, order)
    leaves = {key: tensor.requires_grad_() for key, tensor in factors_of(fleet, [vectors], groups).items()}
    with sdpa_kernel(SDPBackend.MATH):
        loss, weight = row_losses(fleet, leaves, [group.device for group in groups], [group.rows for group in groups])
        slopes = torch.autograd.grad((loss * weight).sum(), list(leaves.values()), create_graph=True)
        dot = sum((slope * moves[key].to(slope)).sum() for key, slope in zip(leaves, slopes, strict=True))
        assert isinstance(dot, Tensor)
        bent = torch.autograd.grad(dot, list(leaves.values()))
    flat = flatten({key: tensor.cpu() for key, tensor in zip(leaves, bent, strict=True)}, order)
    return torch.cat([flat["global"], flat["task"], flat["device"]], 1).double()
