"""Losses and gradients of the full training data, and the variance of sample gradients within each device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.rng import stream
from airpfed.devices.clients import Clients, batch_sizes
from airpfed.devices.gradients import row_losses
from airpfed.model.layout import Factors, Vectors, flatten, gather
from airpfed.model.tokens import batched
from airpfed.theory.constants import batch_variance, confidence_interval, sample_variance
from airpfed.theory.inner_product import Stack


@dataclass(frozen=True)
class SampleGroup:
    """Some samples of one device, computed as if they were a device of their own.

    rows: indices of the samples. point: index of the parameters at which they are computed.
    """

    device: int
    rows: tuple[int, ...]
    point: int = 0


@dataclass(frozen=True)
class FullGradients:
    """The losses and the gradient grad F_k of every device, and the noise of its mini-batch gradients g_k.

    losses: losses of each device's samples. gradient: grad F_k. sgd: E||g_k - grad F_k||^2 of the mini-batch with the
    largest variance (`batch_variance`). sgd_error: half of its 95 % interval. energy: E||g_k||^2, mean over the rounds,
    by scope and kind of factor, for example ("global", "B").
    """

    losses: tuple[Float[Tensor, " _D"], ...]
    gradient: Stack
    sgd: Float[Tensor, " K"]
    sgd_error: Float[Tensor, " K"]
    energy: dict[tuple[str, str], Float[Tensor, " K"]]


@dataclass(frozen=True)
class DeviceGradient:
    """The gradient and the noise of one device; fields as in `FullGradients`."""

    gradient: Float[Tensor, " d"]
    sgd: float
    sgd_error: float
    energy: dict[tuple[str, str], float]


def group_samples(clients: Clients, device: int, size: int, max_samples: int = 0) -> list[tuple[int, ...]]:
    """A device's sample indices in random groups of `size` or slightly more; at least two groups where possible.

    max_samples: use only the first samples of the random order; 0 uses all. Random: stream (seed, "groups", device).
    """
    count = len(clients.shards[device])
    order = torch.randperm(count, generator=stream(clients.seed, "groups", device))[: max_samples or count]
    groups = max(len(order) // size, min(2, len(order)))
    return [tuple(part.tolist()) for part in order.tensor_split(groups)]


def passes(clients: Clients, groups: Sequence[SampleGroup], devices_per_pass: int) -> Iterator[list[int]]:
    """Indices of the groups of each pass: groups of one task, at most `devices_per_pass`."""
    for task in sorted(set(clients.task_of.tolist())):
        members = [index for index, group in enumerate(groups) if int(clients.task_of[group.device]) == task]
        yield from map(list, batched(members, devices_per_pass))


def group_factors(clients: Clients, points: Sequence[Vectors], groups: Sequence[SampleGroup]) -> Factors:
    """The factors of each group's device at the group's point, stacked. Groups are sorted by point."""
    parts: list[Factors] = []
    runs = [(point, [g.device for g in groups if g.point == point]) for point in dict.fromkeys(g.point for g in groups)]
    assert [d for _, run in runs for d in run] == [g.device for g in groups], "groups come point by point"
    for point, run in runs:
        device = torch.tensor(run)
        parts.append(gather(points[point], clients.layout, clients.task_of[device], device))
    return {key: torch.cat([part[key] for part in parts]).to(clients.backbone.device) for key in parts[0]}


def full_gradients(clients: Clients, vectors: Vectors, batch_size: int, devices_per_pass: int) -> FullGradients:
    """Losses and gradients of the full training data.

    Samples are computed in groups of about `batch_size`, `devices_per_pass` groups in a pass. The variance between
    samples is estimated from the variance between groups (`sample_variance`); a device with fewer than two samples has
    none. Gradients are computed in the model's float32 and summed in float64. Random: `group_samples`.
    """
    groups = [
        SampleGroup(k, rows) for k in range(len(clients.shards)) for rows in group_samples(clients, k, batch_size)
    ]
    losses: list[Tensor] = [torch.zeros(0)] * len(groups)
    means: dict[int, list[Tensor]] = {k: [] for k in range(len(clients.shards))}
    counts = [sum(group.device == k for group in groups) for k in means]
    results: dict[int, DeviceGradient] = {}
    columns, sizes = uplink_columns(clients), batch_sizes(clients, batch_size)
    for part in passes(clients, groups, devices_per_pass):
        members = [groups[index] for index in part]
        loss, rows = group_gradients(clients, vectors, members)
        for index, group_loss, row in zip(part, loss, rows, strict=True):
            losses[index] = group_loss[: len(groups[index].rows)]
            means[groups[index].device].append(row)
        for k in [k for k, done in means.items() if len(done) == counts[k]]:
            lengths = torch.tensor([float(len(group.rows)) for group in groups if group.device == k])
            results[k] = device_gradient(torch.stack(means.pop(k)).double(), lengths.double(), sizes[k], columns)
    widths = [clients.layout.size("global"), clients.layout.size("task"), clients.layout.size("device")]
    devices = [results[k] for k in range(len(clients.shards))]
    return FullGradients(
        losses=tuple(_in_sample_order(groups, losses, k, len(shard)) for k, shard in enumerate(clients.shards)),
        gradient=Stack(*torch.split(torch.stack([result.gradient for result in devices]), widths, dim=1)),
        sgd=torch.tensor([result.sgd for result in devices], dtype=torch.float64),
        sgd_error=torch.tensor([result.sgd_error for result in devices], dtype=torch.float64),
        energy={key: torch.tensor([result.energy[key] for result in devices], dtype=torch.float64) for key in columns},
    )


def uplink_columns(clients: Clients) -> dict[tuple[str, str], tuple[int, int]]:
    """(scope, kind) -> first and last column of this normaliser group in a device's row of all that it sends."""
    shift = clients.layout.size("global")
    shared = {("global", kind): span for kind, span in clients.layout.kinds("global").items()}
    personal = {("task", kind): (a + shift, b + shift) for kind, (a, b) in clients.layout.kinds("task").items()}
    return shared | personal


def group_gradients(
    clients: Clients, vectors: Vectors, groups: Sequence[SampleGroup]
) -> tuple[Float[Tensor, "G b"], Float[Tensor, "G d"]]:
    """Sample losses in nats, padded to the largest group, and the gradient of each group's mean loss.

    The d columns are the vectors of scope `global`, `task` and `device`, one after another.
    """
    leaves = {key: tensor.requires_grad_() for key, tensor in group_factors(clients, [vectors], groups).items()}
    loss, weight = row_losses(clients, leaves, [group.device for group in groups], [group.rows for group in groups])
    slopes = torch.autograd.grad((loss * weight).sum(), list(leaves.values()))
    flat = flatten({key: slope.cpu() for key, slope in zip(leaves, slopes, strict=True)}, clients.layout)
    return loss.detach().cpu().double(), torch.cat([flat["global"], flat["task"], flat["device"]], 1)


def device_gradient(
    means: Float[Tensor, "G d"],
    sizes: Float[Tensor, " G"],
    batch_size: int,
    columns: dict[tuple[str, str], tuple[int, int]],
) -> DeviceGradient:
    """A device's gradient and mini-batch variance, from its groups' mean gradients and sizes."""
    centre = (sizes / sizes.sum()) @ means
    usual, worst = batch_variance(batch_size, int(sizes.sum()))

    def noise(first: int, last: int, factor: float) -> tuple[float, float]:
        if len(sizes) < 2 or factor == 0:
            return 0.0, 0.0
        mean, half = confidence_interval(sample_variance(means[:, first:last], sizes, centre[first:last]))
        return factor * mean, factor * half

    energy = {key: float(centre[a:b].square().sum()) + noise(a, b, usual)[0] for key, (a, b) in columns.items()}
    return DeviceGradient(centre, *noise(0, means.shape[1], worst), energy)


def _in_sample_order(
    groups: Sequence[SampleGroup], values: Sequence[Tensor], device: int, count: int
) -> Float[Tensor, " _D"]:
    """Values by group as values by sample of one device."""
    out = torch.zeros(count, dtype=torch.float64)
    for group, value in zip(groups, values, strict=True):
        if group.device == device:
            out[list(group.rows)] = value.double()
    return out


def full_losses(
    clients: Clients, points: Sequence[Vectors], batch_size: int, devices_per_pass: int
) -> tuple[Float[Tensor, " _D"], ...]:
    """Losses of every device's samples; with P points each sample is computed at one point.

    Sample i of all samples (in the random order of `group_samples`) is computed at point i modulo P, so every point
    has an equal share of every task and device.
    """
    orders = [
        [row for rows in group_samples(clients, k, batch_size) for row in rows] for k in range(len(clients.shards))
    ]
    begins = torch.tensor([0, *map(len, orders)]).cumsum(0).tolist()
    groups = [
        SampleGroup(k, rows, point)
        for point in range(len(points))
        for k, order in enumerate(orders)
        for rows in batched([row for i, row in enumerate(order, begins[k]) if i % len(points) == point], batch_size)
    ]
    values: list[Tensor] = [torch.zeros(0)] * len(groups)
    for part in passes(clients, groups, devices_per_pass):
        members = [groups[index] for index in part]
        with torch.no_grad():
            factors = group_factors(clients, points, members)
            loss, _ = row_losses(clients, factors, [g.device for g in members], [g.rows for g in members])
        for index, group_loss in zip(part, loss.cpu().double(), strict=True):
            values[index] = group_loss[: len(groups[index].rows)]
    return tuple(_in_sample_order(groups, values, k, len(shard)) for k, shard in enumerate(clients.shards))


def mean_loss(losses: Sequence[Float[Tensor, " _D"]], weight: Float[Tensor, " K"]) -> float:
    """F of the samples' losses: sum_k D_k/D times the mean over device k, in float64."""
    return float(weight @ torch.stack([device_losses.double().mean() for device_losses in losses]))
