"""The devices of a run, the mini-batches that they draw, and which devices share a pass over the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor

from airpfed.core.rng import stream
from airpfed.devices.parallel import balance
from airpfed.devices.prefix_cache import PrefixCache
from airpfed.model.backbone import Backbone
from airpfed.model.layout import Layout
from airpfed.model.tokens import Encoding


@dataclass(frozen=True)
class Clients:
    """K devices that share one base model.

    shards: each device's training samples. task_of: each device's task. classes: outputs of each task's head, 0 for a
    causal LM. batch_multiplier: mini-batches that a device takes at once where it stands for several; default 1 each.
    gradient_bytes: largest size of a round's gradients in memory, bytes; gradients beyond this limit lie in a temporary
    file (`core.memory`). autocast: whether training passes multiply matrices in bfloat16, which changes gradients by
    about one percent. dropout: rate of the adapters' dropout in training. numbers: each device's number in the names of
    random streams; default 0 to K - 1.
    """

    backbone: Backbone
    layout: Layout
    cache: PrefixCache
    shards: tuple[tuple[Encoding, ...], ...]
    task_of: Int[Tensor, " K"]
    classes: tuple[int, ...]
    seed: int
    batch_multiplier: tuple[int, ...] = ()
    gradient_bytes: float = float("inf")
    autocast: bool = False
    dropout: float = 0.0
    numbers: tuple[int, ...] = ()


def draw_samples(clients: Clients, device: int, cursor: int, count: int) -> list[int]:
    """Indices of a device's next `count` samples from position `cursor` of its endless sequence of epochs.

    Each epoch is a random permutation of the device's samples. Random: stream (seed, "data", device, epoch).
    """
    size = len(clients.shards[device])
    return [_order(clients.seed, device, p // size, size)[p % size] for p in range(cursor, cursor + count)]


def _order(seed: int, device: int, epoch: int, size: int) -> list[int]:
    order: list[int] = torch.randperm(size, generator=stream(seed, "data", device, epoch)).tolist()
    return order


def draw_batches(
    clients: Clients, cursors: Int[Tensor, " K"], batch_size: int, steps: int
) -> tuple[list[list[list[int]]], Int[Tensor, " K"]]:
    """Sample indices by device and local step, and the cursors after these steps. Random as in `draw_samples`."""
    counts = batch_sizes(clients, batch_size)
    plan = [
        [draw_samples(clients, k, int(cursors[k]) + step * count, count) for step in range(steps)]
        for k, count in enumerate(counts)
    ]
    return plan, cursors + steps * torch.tensor(counts)


def batch_sizes(clients: Clients, batch_size: int) -> list[int]:
    """Samples in each device's mini-batch: `batch_size` times its multiplier, at most all of its samples."""
    multipliers = clients.batch_multiplier or (1,) * len(clients.shards)
    return [min(batch_size * count, len(shard)) for count, shard in zip(multipliers, clients.shards, strict=True)]


def group_devices(
    clients: Clients, plan: Sequence[Sequence[Sequence[int]]], devices_per_pass: int, passes: int = 1
) -> list[list[int]]:
    """Groups of devices for one pass each, with similar numbers of tokens; the largest group first.

    plan: sample indices by device and local step. devices_per_pass: devices in all passes that run at the same time.
    passes: how many passes run at the same time. A group holds devices of one task, except where samples are packed
    end to end. Packed groups may hold up to twice as many devices, if they have no more tokens than `devices_per_pass`
    devices of the largest size.
    """
    tokens = [max(sum(len(clients.shards[k][i].ids) for i in rows) for rows in steps) for k, steps in enumerate(plan)]
    packing = clients.backbone.paths.packing and devices_per_pass > 1
    tasks = groupby(range(len(plan)), key=lambda k: 0 if packing else int(clients.task_of[k]))
    groups = []
    for members in [list(devices) for _, devices in tasks]:
        sizes = [tokens[k] for k in members]
        limit = 2 * devices_per_pass if packing else devices_per_pass
        count = max(ceil(len(sizes) / limit), ceil(sum(sizes) / (devices_per_pass * max(sizes))))
        lists = balance(sizes, min(passes * count, len(sizes)), ceil(limit / passes))
        groups += [[members[index] for index in part] for part in lists]
    return sorted(groups, key=lambda group: -sum(tokens[k] for k in group))
