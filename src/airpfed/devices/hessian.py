"""Hessians of the tasks' losses F_n in the adapters, by products with vectors: two backward passes each."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from airpfed.core.rng import stream
from airpfed.devices.full_gradients import Group, deal, factors_of, together
from airpfed.devices.gradients import Clients, row_losses
from airpfed.model.layout import Vectors, flatten, unflatten
from airpfed.theory.constants import confidence_interval, lanczos, ritz_upper


@dataclass(frozen=True)
class Curvature:
    """The largest Hessian eigenvalue of any task at a point, and its 95 % interval."""

    beta: float
    low: float
    high: float


def curvature(clients: Clients, vectors: Vectors, samples: int, batch: int, steps: int, chunk: int) -> Curvature:
    """beta at a point: the largest eigenvalue over tasks of the Hessian of F_n in (W_s, W_p,n, what is never sent).

    samples: of each device, the first of a random order; 0: all. Where fewer than all are used the eigenvalue is too
    large in expectation (the largest eigenvalue is convex), and the interval adds what the curvature along the found
    vector varies by from group to group. Random: the start, stream (seed, "lanczos"); the order of samples.
    """
    dealt = [Group(k, rows) for k in range(len(clients.shards)) for rows in deal(clients, k, batch, samples)]
    tasks, size = len(clients.classes), dimension(clients)

    def apply(x: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        return product(clients, vectors, dealt, x, chunk)[0]

    start = torch.randn(tasks, size, generator=stream(clients.seed, "lanczos"), dtype=torch.float64)
    start = start * apply_mask(clients)
    found = lanczos(apply, start, steps)
    _, along = product(clients, vectors, dealt, found.vector, chunk)
    ends = []
    for n, (top, bottom) in enumerate(zip(found.top.tolist(), found.bottom.tolist(), strict=True)):
        own = torch.tensor(
            [value for group, value in zip(dealt, along, strict=True) if clients.task_of[group.device] == n]
        )
        whole = sum(len(shard) for k, shard in enumerate(clients.shards) if clients.task_of[k] == n)
        used = sum(len(group.rows) for group in dealt if clients.task_of[group.device] == n)
        half = confidence_interval(own.double(), round(len(own) * whole / used))[1] if used < whole else 0.0
        ends.append((top, top - half, ritz_upper(top + half, bottom, size, steps)))
    beta, low, high = (max(end[i] for end in ends) for i in range(3))
    return Curvature(beta, low, high)


def dimension(clients: Clients) -> int:
    """Entries of (W_s, W_p,n, a part a device of what is never sent)."""
    order = clients.layout
    return order.size("global") + order.size("task") + len(clients.shards) * order.size("device")


def apply_mask(clients: Clients) -> Float[Tensor, "N d"]:
    """1 on the entries that a task's loss can read: not the own parts of other tasks' devices."""
    order, tasks = clients.layout, len(clients.classes)
    head = torch.ones(tasks, order.size("global") + order.size("task"), dtype=torch.float64)
    mine = (clients.task_of[None, :] == torch.arange(tasks)[:, None]).double()
    return torch.cat([head, mine.repeat_interleave(order.size("device"), dim=1)], 1)


def product(
    clients: Clients, vectors: Vectors, dealt: list[Group], x: Float[Tensor, "N d"], chunk: int
) -> tuple[Float[Tensor, "N d"], list[float]]:
    """H_n x_n of every task, and x_n H_j x_n of every group j of samples (group by group their mean is x_n H_n x_n).

    Parts that are never sent are scaled by the root of D_k/D_n, which makes the operator symmetric in the plain
    inner product and its eigenvalues those in the weights of F.
    """
    counts = torch.zeros(len(clients.shards), dtype=torch.float64)
    share = torch.tensor([float(len(shard)) for shard in clients.shards], dtype=torch.float64)
    for n in range(len(x)):
        share[clients.task_of == n] /= share[clients.task_of == n].sum()
    for group in dealt:
        counts[group.device] += len(group.rows)
    out, along = torch.zeros_like(x), [0.0] * len(dealt)
    for part in together(clients, dealt, chunk):
        chosen = [dealt[index] for index in part]
        ways = torch.stack([row_of(clients, x, group.device, share) for group in chosen])
        bent = hessian_rows(clients, vectors, chosen, ways)
        for index, group, way, row in zip(part, chosen, ways, bent, strict=True):
            along[index] = float(way @ row)
            place(clients, out, group.device, row * len(group.rows) / counts[group.device] * share[group.device], share)
    return out, along


def row_of(clients: Clients, x: Float[Tensor, "N d"], device: int, share: Float[Tensor, " K"]) -> Float[Tensor, " d_k"]:
    """The direction in which one device's factors move: shared, personal and own part."""
    n, (sent, own) = int(clients.task_of[device]), cuts(clients, device)
    return torch.cat([x[n, :sent], x[n, own] / share[device].sqrt()])


def place(
    clients: Clients, out: Float[Tensor, "N d"], device: int, row: Float[Tensor, " d_k"], share: Float[Tensor, " K"]
) -> None:
    """Add a device's row, times its share, to its task's product."""
    n, (sent, own) = int(clients.task_of[device]), cuts(clients, device)
    out[n, :sent] += row[:sent]
    out[n, own] += row[sent:] / share[device].sqrt()


def cuts(clients: Clients, device: int) -> tuple[int, slice]:
    """Columns of a task's vector: up to where it is sent, and those of one device's own part."""
    sent, width = clients.layout.size("global") + clients.layout.size("task"), clients.layout.size("device")
    return sent, slice(sent + device * width, sent + (device + 1) * width)


def hessian_rows(
    clients: Clients, vectors: Vectors, groups: list[Group], ways: Float[Tensor, "G d_k"]
) -> Float[Tensor, "G d_k"]:
    """Each group's Hessian times its direction; plain attention, since the fused one has no second gradient."""
    order = clients.layout
    sizes = [order.size("global"), order.size("task"), order.size("device")]
    shared, personal, own = torch.split(ways, sizes, dim=1)
    still = shared.new_zeros(len(groups), order.size("frozen"))
    moves = unflatten({"global": shared, "task": personal, "device": own, "frozen": still}, order)
    leaves = {key: tensor.requires_grad_() for key, tensor in factors_of(clients, [vectors], groups).items()}
    with sdpa_kernel(SDPBackend.MATH):
        loss, weight = row_losses(clients, leaves, [group.device for group in groups], [group.rows for group in groups])
        slopes = torch.autograd.grad((loss * weight).sum(), list(leaves.values()), create_graph=True)
        dot = sum((slope * moves[key].to(slope)).sum() for key, slope in zip(leaves, slopes, strict=True))
        assert isinstance(dot, Tensor)
        bent = torch.autograd.grad(dot, list(leaves.values()))
    flat = flatten({key: tensor.cpu() for key, tensor in zip(leaves, bent, strict=True)}, order)
    return torch.cat([flat["global"], flat["task"], flat["device"]], 1).double()
