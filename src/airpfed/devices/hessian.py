"""Curvature of the tasks' losses F_n in the adapters, by Hessian-vector products: two backward passes each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from airpfed.core.rng import stream
from airpfed.devices.clients import Clients
from airpfed.devices.full_gradients import SampleGroup, group_factors, group_samples, passes
from airpfed.devices.gradients import row_losses
from airpfed.model.layout import Vectors, flatten, unflatten
from airpfed.theory.constants import confidence_interval, lanczos, ritz_upper


@dataclass(frozen=True)
class Curvature:
    """The largest Hessian eigenvalue of any task at a point, and its 95 % interval."""

    beta: float
    low: float
    high: float


def curvature(
    clients: Clients, vectors: Vectors, samples: int, batch_size: int, steps: int, devices_per_pass: int
) -> Curvature:
    """beta at a point: the largest eigenvalue over the tasks' Hessians of F_n in (W_s, W_p,n, own parts).

    The own parts are the vectors that devices never send. samples: number of samples of each device, taken in random
    order; 0 uses all. With fewer than all samples the eigenvalue is too large in expectation, because the largest
    eigenvalue is a convex function; the interval then includes the spread between groups of samples of the curvature
    along the eigenvector. Random: the start of Lanczos, stream (seed, "lanczos"), and the order of samples
    (`group_samples`).
    """
    groups = [
        SampleGroup(k, rows)
        for k in range(len(clients.shards))
        for rows in group_samples(clients, k, batch_size, samples)
    ]
    tasks, size = len(clients.classes), dimension(clients)

    def apply(x: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        return hessian_products(clients, vectors, groups, x, devices_per_pass)[0]

    start = torch.randn(tasks, size, generator=stream(clients.seed, "lanczos"), dtype=torch.float64)
    start = start * task_mask(clients)
    ritz = lanczos(apply, start, steps)
    _, curvatures = hessian_products(clients, vectors, groups, ritz.vector, devices_per_pass)
    ranges = []
    for n, (top, bottom) in enumerate(zip(ritz.top.tolist(), ritz.bottom.tolist(), strict=True)):
        values = torch.tensor(
            [value for group, value in zip(groups, curvatures, strict=True) if clients.task_of[group.device] == n]
        )
        total = sum(len(shard) for k, shard in enumerate(clients.shards) if clients.task_of[k] == n)
        used = sum(len(group.rows) for group in groups if clients.task_of[group.device] == n)
        half = confidence_interval(values.double(), round(len(values) * total / used))[1] if used < total else 0.0
        ranges.append((top, top - half, ritz_upper(top + half, bottom, size, steps)))
    beta, low, high = (max(values[i] for values in ranges) for i in range(3))
    return Curvature(beta, low, high)


def dimension(clients: Clients) -> int:
    """Entries of (W_s, W_p,n, the own parts of all devices)."""
    order = clients.layout
    return order.size("global") + order.size("task") + len(clients.shards) * order.size("device")


def task_mask(clients: Clients) -> Float[Tensor, "N d"]:
    """1 on the entries that a task's loss depends on, 0 on the own parts of other tasks' devices."""
    order, tasks = clients.layout, len(clients.classes)
    uplink = torch.ones(tasks, order.size("global") + order.size("task"), dtype=torch.float64)
    members = (clients.task_of[None, :] == torch.arange(tasks)[:, None]).double()
    return torch.cat([uplink, members.repeat_interleave(order.size("device"), dim=1)], 1)


def hessian_products(
    clients: Clients,
    vectors: Vectors,
    groups: Sequence[SampleGroup],
    x: Float[Tensor, "N d"],
    devices_per_pass: int,
) -> tuple[Float[Tensor, "N d"], list[float]]:
    """H_n x_n of every task n, and x_n H_j x_n of every group j of samples, whose weighted mean is x_n H_n x_n.

    The own parts are scaled by the root of D_k/D_n. The operator is then symmetric in the plain inner product, and its
    eigenvalues are those in the weights of F.
    """
    counts = torch.zeros(len(clients.shards), dtype=torch.float64)
    share = torch.tensor([float(len(shard)) for shard in clients.shards], dtype=torch.float64)
    for n in range(len(x)):
        share[clients.task_of == n] /= share[clients.task_of == n].sum()
    for group in groups:
        counts[group.device] += len(group.rows)
    uplink_size, width = clients.layout.size("global") + clients.layout.size("task"), clients.layout.size("device")

    def columns(device: int) -> slice:
        """The own part of a device in a task's vector."""
        return slice(uplink_size + device * width, uplink_size + (device + 1) * width)

    out, curvatures = torch.zeros_like(x), [0.0] * len(groups)
    for part in passes(clients, groups, devices_per_pass):
        members = [groups[index] for index in part]
        rows = []
        for group in members:
            n, k = int(clients.task_of[group.device]), group.device
            rows.append(torch.cat([x[n, :uplink_size], x[n, columns(k)] / share[k].sqrt()]))
        directions = torch.stack(rows)
        products = group_products(clients, vectors, members, directions)
        for index, group, direction, product in zip(part, members, directions, products, strict=True):
            n, k = int(clients.task_of[group.device]), group.device
            curvatures[index] = float(direction @ product)
            row = product * len(group.rows) / counts[k] * share[k]
            out[n, :uplink_size] += row[:uplink_size]
            out[n, columns(k)] += row[uplink_size:] / share[k].sqrt()
    return out, curvatures


def group_products(
    clients: Clients, vectors: Vectors, groups: Sequence[SampleGroup], directions: Float[Tensor, "G d_k"]
) -> Float[Tensor, "G d_k"]:
    """Each group's Hessian times its direction. Attention is not fused here: fused attention has no second gradient."""
    order = clients.layout
    sizes = [order.size("global"), order.size("task"), order.size("device")]
    shared, personal, local = torch.split(directions, sizes, dim=1)
    frozen = shared.new_zeros(len(groups), order.size("frozen"))
    step = unflatten({"global": shared, "task": personal, "device": local, "frozen": frozen}, order)
    leaves = {key: tensor.requires_grad_() for key, tensor in group_factors(clients, [vectors], groups).items()}
    with sdpa_kernel(SDPBackend.MATH):
        loss, weight = row_losses(clients, leaves, [group.device for group in groups], [group.rows for group in groups])
        slopes = torch.autograd.grad((loss * weight).sum(), list(leaves.values()), create_graph=True)
        dot = sum((slope * step[key].to(slope)).sum() for key, slope in zip(leaves, slopes, strict=True))
        assert isinstance(dot, Tensor)
        products = torch.autograd.grad(dot, list(leaves.values()))
    flat = flatten({key: tensor.cpu() for key, tensor in zip(leaves, products, strict=True)}, order)
    return torch.cat([flat["global"], flat["task"], flat["device"]], 1).double()
