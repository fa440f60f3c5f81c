"""The full training data in one pass: every device's own loss and gradient, and how far a sample's gradient strays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.rng import stream
from airpfed.devices.gradients import Clients, batch_sizes, row_losses
from airpfed.model.buckets import batched
from airpfed.model.layout import Factors, Vectors, flatten, gather
from airpfed.theory.constants import batch_variance, confidence_interval, sample_variance
from airpfed.theory.inner_product import Stack


@dataclass(frozen=True)
class Group:
    """Some samples of one device, computed as if they were a device of their own, at one of several points."""

    device: int
    rows: tuple[int, ...]
    point: int = 0


@dataclass(frozen=True)
class Sweep:
    """F_k and grad F_k of every device, losses of its samples, and E||g_k - grad F_k||^2 with its interval's half.

    sgd: of the worst round's mini-batch (`batch_variance`). energy: E||g_k||^2, mean over the rounds, by scope and kind
    of factor, e.g. ("global", "B").
    """

    losses: tuple[Float[Tensor, " _D"], ...]
    gradient: Stack
    sgd: Float[Tensor, " K"]
    sgd_error: Float[Tensor, " K"]
    energy: dict[tuple[str, str], Float[Tensor, " K"]]


@dataclass(frozen=True)
class Own:
    """One device's part of a sweep."""

    gradient: Float[Tensor, " d"]
    sgd: float
    sgd_error: float
    energy: dict[tuple[str, str], float]


def deal(clients: Clients, device: int, size: int, most: int = 0) -> list[tuple[int, ...]]:
    """A device's samples (at most `most`; 0: all) in random groups of `size` or a little more; two or more if it can.

    Random: one order a device, stream (seed, "groups", device).
    """
    count = len(clients.shards[device])
    order = torch.randperm(count, generator=stream(clients.seed, "groups", device))[: most or count]
    groups = max(len(order) // size, min(2, len(order)))
    return [tuple(part.tolist()) for part in order.tensor_split(groups)]


def together(clients: Clients, groups: Sequence[Group], chunk: int) -> Iterator[list[int]]:
    """Indices of at most `chunk` groups of one task at a time."""
    for task in sorted(set(clients.task_of.tolist())):
        members = [index for index, group in enumerate(groups) if int(clients.task_of[group.device]) == task]
        yield from map(list, batched(members, chunk))


def factors_of(clients: Clients, points: Sequence[Vectors], groups: Sequence[Group]) -> Factors:
    """The factors of each group's device at the group's point, stacked."""
    parts: list[Factors] = []
    runs = [(point, [g.device for g in groups if g.point == point]) for point in dict.fromkeys(g.point for g in groups)]
    assert [d for _, run in runs for d in run] == [g.device for g in groups], "groups come point by point"
    for point, run in runs:
        device = torch.tensor(run)
        parts.append(gather(points[point], clients.layout, clients.task_of[device], device))
    return {key: torch.cat([part[key] for part in parts]).to(clients.backbone.device) for key in parts[0]}


def sweep(clients: Clients, vectors: Vectors, batch: int, chunk: int) -> Sweep:
    """Losses and gradients of the full training data, `chunk` groups of about `batch` samples together.

    Groups are what tells how gradients of samples differ (`sample_variance`); a device with fewer than two samples
    has no such noise. Gradients are float32 of the model, added in float64.
    """
    dealt = [Group(k, rows) for k in range(len(clients.shards)) for rows in deal(clients, k, batch)]
    losses: list[Tensor] = [torch.zeros(0)] * len(dealt)
    waiting: dict[int, list[Tensor]] = {k: [] for k in range(len(clients.shards))}
    counts = [sum(group.device == k for group in dealt) for k in waiting]
    seen: dict[int, Own] = {}
    groups, taken = columns(clients), batch_sizes(clients, batch)
    for part in together(clients, dealt, chunk):
        chosen = [dealt[index] for index in part]
        loss, rows = group_gradients(clients, vectors, chosen)
        for index, own, row in zip(part, loss, rows, strict=True):
            losses[index] = own[: len(dealt[index].rows)]
            waiting[dealt[index].device].append(row)
        for k in [k for k, got in waiting.items() if len(got) == counts[k]]:
            sizes = torch.tensor([float(len(group.rows)) for group in dealt if group.device == k])
            seen[k] = summed(torch.stack(waiting.pop(k)).double(), sizes.double(), taken[k], groups)
    cut = [clients.layout.size("global"), clients.layout.size("task"), clients.layout.size("device")]
    each = [seen[k] for k in range(len(clients.shards))]
    return Sweep(
        losses=tuple(in_order(dealt, losses, k, len(shard)) for k, shard in enumerate(clients.shards)),
        gradient=Stack(*torch.split(torch.stack([own.gradient for own in each]), cut, dim=1)),
        sgd=torch.tensor([own.sgd for own in each], dtype=torch.float64),
        sgd_error=torch.tensor([own.sgd_error for own in each], dtype=torch.float64),
        energy={group: torch.tensor([own.energy[group] for own in each], dtype=torch.float64) for group in groups},
    )


def columns(clients: Clients) -> dict[tuple[str, str], tuple[int, int]]:
    """Columns of every normaliser group in a device's row of all that it sends: (scope, kind) -> first, last."""
    shift = clients.layout.size("global")
    shared = {("global", kind): span for kind, span in clients.layout.kinds("global").items()}
    personal = {("task", kind): (a + shift, b + shift) for kind, (a, b) in clients.layout.kinds("task").items()}
    return shared | personal


def group_gradients(
    clients: Clients, vectors: Vectors, groups: Sequence[Group]
) -> tuple[Float[Tensor, "G b"], Float[Tensor, "G d"]]:
    """Losses of some groups' samples, and each group's gradient in all that its device may move."""
    leaves = {key: tensor.requires_grad_() for key, tensor in factors_of(clients, [vectors], groups).items()}
    loss, weight = row_losses(clients, leaves, [group.device for group in groups], [group.rows for group in groups])
    slopes = torch.autograd.grad((loss * weight).sum(), list(leaves.values()))
    flat = flatten({key: slope.cpu() for key, slope in zip(leaves, slopes, strict=True)}, clients.layout)
    return loss.detach().cpu().double(), torch.cat([flat["global"], flat["task"], flat["device"]], 1)


def summed(
    means: Float[Tensor, "G d"],
    sizes: Float[Tensor, " G"],
    batch: int,
    groups: dict[tuple[str, str], tuple[int, int]],
) -> Own:
    """What a device's groups of samples say of its gradient, and of that of a mini-batch."""
    centre = (sizes / sizes.sum()) @ means
    usual, worst = batch_variance(batch, int(sizes.sum()))

    def noise(first: int, last: int, factor: float) -> tuple[float, float]:
        if len(sizes) < 2 or factor == 0:
            return 0.0, 0.0
        mean, half = confidence_interval(sample_variance(means[:, first:last], sizes, centre[first:last]))
        return factor * mean, factor * half

    energy = {key: float(centre[a:b].square().sum()) + noise(a, b, usual)[0] for key, (a, b) in groups.items()}
    return Own(centre, *noise(0, means.shape[1], worst), energy)


def in_order(dealt: Sequence[Group], values: Sequence[Tensor], device: int, count: int) -> Float[Tensor, " _D"]:
    """What groups found, put back into the order of a device's samples."""
    out = torch.zeros(count, dtype=torch.float64)
    for group, own in zip(dealt, values, strict=True):
        if group.device == device:
            out[list(group.rows)] = own.double()
    return out


def losses_at(
    clients: Clients, points: Sequence[Vectors], dealt: Sequence[Group], chunk: int
) -> list[Float[Tensor, " _n"]]:
    """Losses of each group's samples at its point, without gradients; groups of a task come point by point."""
    out: list[Tensor] = [torch.zeros(0)] * len(dealt)
    for part in together(clients, dealt, chunk):
        chosen = [dealt[index] for index in part]
        with torch.no_grad():
            loss, _ = row_losses(
                clients, factors_of(clients, points, chosen), [g.device for g in chosen], [g.rows for g in chosen]
            )
        for index, own in zip(part, loss.cpu().double(), strict=True):
            out[index] = own[: len(dealt[index].rows)]
    return out


def full_losses(
    clients: Clients, points: Sequence[Vectors], batch: int, chunk: int
) -> tuple[Float[Tensor, " _D"], ...]:
    """Losses of every device's samples; with several points every sample at one of them, dealt in turn.

    Sample i of all samples in their order of dealing is computed at point i modulo their number, so that each point has
    its share of every task and device.
    """
    orders = [[row for rows in deal(clients, k, batch) for row in rows] for k in range(len(clients.shards))]
    begins = torch.tensor([0, *map(len, orders)]).cumsum(0).tolist()
    dealt = [
        Group(k, rows, point)
        for point in range(len(points))
        for k, order in enumerate(orders)
        for rows in batched([row for i, row in enumerate(order, begins[k]) if i % len(points) == point], batch)
    ]
    values = losses_at(clients, points, dealt, chunk)
    return tuple(in_order(dealt, values, k, len(shard)) for k, shard in enumerate(clients.shards))


def mean_loss(losses: Sequence[Float[Tensor, " _D"]], weight: Float[Tensor, " K"]) -> float:
    """F of the samples' losses: sum_k D_k/D of the devices' means, in float64."""
    return float(weight @ torch.stack([own.double().mean() for own in losses]))
