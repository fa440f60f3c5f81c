"""The devices of a run, their data, and the gradients of many of them in one stacked pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed import spill
from airpfed.devices.prefix import PrefixCache, stack
from airpfed.devices.workers import dealt, side_by_side, workers
from airpfed.model.adapters import SCOPES
from airpfed.model.backbone import Backbone
from airpfed.model.buckets import buckets
from airpfed.model.encode import IGNORED, Encoded, collate, pack
from airpfed.model.passes import adapted, logits, packed_logits
from airpfed.model.vector import Factors, Layout, Vectors, flatten, gather, trained
from airpfed.streams import stream

PASS_TOKENS = {"cpu": 16, "cuda": 4096}
"""What one more pass over the model costs by itself, in tokens' worth of arithmetic: launching its operations."""


@dataclass(frozen=True)
class Fleet:
    """K devices over one backbone.

    shards: each device's encoded samples; task_of: each device's task; classes: outputs of each task's head
    (classifier). hands: batches that a device takes at once, where it stands for so many; by default one.
    gradient_bytes: of a round's gradients held in memory, more lies in a temporary file (`spill`). autocast: training
    passes multiply matrices in bfloat16, which leaves gradients about a percent off.
    """

    backbone: Backbone
    layout: Layout
    cache: PrefixCache
    shards: tuple[tuple[Encoded, ...], ...]
    task_of: Int[Tensor, " K"]
    classes: tuple[int, ...]
    seed: int
    hands: tuple[int, ...] = ()
    gradient_bytes: float = float("inf")
    autocast: bool = False


def draw(fleet: Fleet, device: int, cursor: int, count: int) -> list[int]:
    """Indices of a device's next `count` samples.

    Each epoch is a fresh permutation, fixed by seed, device and epoch.
    """
    size = len(fleet.shards[device])
    return [_order(fleet.seed, device, p // size, size)[p % size] for p in range(cursor, cursor + count)]


def _order(seed: int, device: int, epoch: int, size: int) -> list[int]:
    order: list[int] = torch.randperm(size, generator=stream(seed, "data", device, epoch)).tolist()
    return order


def batches(fleet: Fleet, cursors: Int[Tensor, " K"], batch: int, steps: int) -> tuple[list[list[list[int]]], Tensor]:
    """Sample indices of each device for each local step, and the cursors after them."""
    counts = batch_sizes(fleet, batch)
    plan = [
        [draw(fleet, k, int(cursors[k]) + step * count, count) for step in range(steps)]
        for k, count in enumerate(counts)
    ]
    return plan, cursors + steps * torch.tensor(counts)


def batch_sizes(fleet: Fleet, batch: int) -> list[int]:
    """Samples that each device takes at once: small shards give small batches."""
    hands = fleet.hands or (1,) * len(fleet.shards)
    return [min(batch * many, len(shard)) for many, shard in zip(hands, fleet.shards, strict=True)]


def gradients(
    fleet: Fleet,
    vectors: Vectors,
    plan: Sequence[Sequence[Sequence[int]]],
    local_lr: float,
    chunk: int,
    turn: tuple[int, int] | None = None,
) -> tuple[Vectors, Float[Tensor, " K"]]:
    """Each device's gradient of its own loss at its own parameters, and that loss (nats, of the first local step).

    plan: indices of each device's samples for each of E local steps. With E > 1 the pseudo-gradient (W_start - W_end) /
    (E local_lr) comes back instead. turn: columns of the `global` vector that local steps move (None: all); what a
    method in turn lets rest must rest here too. chunk: devices computed together (`chunks`). Returns scope ->
    (K, d_scope), ordinary tensors that may lie in a file: one pass over the model, however many devices, and every
    normaliser exact.
    """
    whole, losses = held(fleet), torch.zeros(len(fleet.shards))
    for k, steps in enumerate(plan):
        fleet.cache.fill(f"device {k}", fleet.shards[k], [i for rows in steps for i in rows])

    def work(backbone: Backbone, devices: list[int]) -> None:
        found, loss = _chunk(replace(fleet, backbone=backbone), vectors, plan, devices, local_lr, turn)
        index = torch.tensor(devices)
        losses[index] = loss.to(losses)
        for scope, matrix in whole.items():
            matrix[index] = found[scope].to(matrix)
            spill.release(matrix)

    count = workers(fleet.backbone, chunk)
    side_by_side(fleet.backbone, work, chunks(fleet, plan, chunk, count), count)
    return whole, losses


def held(fleet: Fleet) -> Vectors:
    """Room for a round's gradients, scope -> (K, d_scope); each scope has its share of `gradient_bytes`."""
    sizes = {scope: fleet.layout.size(scope) for scope in SCOPES}
    share = fleet.gradient_bytes / max(1, sum(sizes.values()))
    return {scope: spill.zeros(len(fleet.shards), size, share * size) for scope, size in sizes.items()}


def chunks(fleet: Fleet, plan: Sequence[Sequence[Sequence[int]]], size: int, at_once: int = 1) -> list[list[int]]:
    """Devices of one task that are computed together, with about as many tokens in each chunk; the largest first.

    size: devices of all chunks that are computed at once. Where samples are packed, tasks do not matter, and there may
    be up to twice as many if they have no more tokens than `size` of the largest.
    """
    tokens = [max(sum(len(fleet.shards[k][i].ids) for i in rows) for rows in own) for k, own in enumerate(plan)]
    packs = fleet.backbone.paths.packing and size > 1
    groups = [list(own) for _, own in groupby(range(len(plan)), key=lambda k: 0 if packs else int(fleet.task_of[k]))]
    found = []
    for members in groups:
        own = [tokens[k] for k in members]
        most = 2 * size if packs else size
        count = max(ceil(len(own) / most), ceil(sum(own) / (size * max(own))))
        lists = dealt(own, min(at_once * count, len(own)), ceil(most / at_once))
        found += [[members[index] for index in part] for part in lists]
    return sorted(found, key=lambda part: -sum(tokens[k] for k in part))


def _chunk(
    fleet: Fleet,
    vectors: Vectors,
    plan: Sequence[Sequence[Sequence[int]]],
    devices: list[int],
    local_lr: float,
    turn: tuple[int, int] | None,
) -> tuple[Vectors, Tensor]:
    """The stacked pass over some devices, all their local steps."""
    index = torch.tensor(devices)
    start = gather(vectors, fleet.layout, fleet.task_of[index], index)
    now = {key: tensor.to(fleet.backbone.device) for key, tensor in start.items()}
    steps = len(plan[devices[0]])
    moves = movable(fleet, now, turn) if steps > 1 else {}
    total: Factors = {}
    losses = []
    for step in range(steps):
        loss, gradient = loss_gradient(fleet, now, devices, [plan[k][step] for k in devices])
        losses.append(loss)
        total = {key: total[key] + gradient[key] for key in total} if total else gradient
        if step + 1 < steps:
            now |= {key: now[key] - local_lr * moves[key] * gradient[key] for key in total}
    mean = {key: tensor.cpu() if steps == 1 else (tensor / steps).cpu() for key, tensor in total.items()}
    return flatten(mean, fleet.layout), losses[0].cpu()


def movable(fleet: Fleet, factors: Factors, turn: tuple[int, int] | None) -> Factors:
    """1 where a local step may move a factor, 0 on what is frozen or rests in this turn.

    Shaped to multiply the factors of any devices. Raises ValueError where a method in turn is not told whose it is.
    """
    if turn is None and fleet.layout.in_turn:
        raise ValueError("local steps of a method in turn need the columns whose turn it is")
    like = next(iter(factors.values()))
    marks: Vectors = {s: like.new_full((1, fleet.layout.size(s)), 0.0 if s == "frozen" else 1.0) for s in SCOPES}
    if turn is not None:
        marks["global"][:, : turn[0]] = marks["global"][:, turn[1] :] = 0.0
    one = torch.zeros(1, dtype=torch.long)
    return gather(marks, fleet.layout, one, one)


def loss_gradient(
    fleet: Fleet, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, " K"], Factors]:
    """Losses of some devices on the given samples and each one's gradient in its own factors, in one backward pass.

    Since no device's loss reads another's factors, the gradient of the sum of losses is every device's own gradient.
    """
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in trained(factors).items()}
    with torch.autocast(fleet.backbone.device.type, torch.bfloat16, enabled=fleet.autocast):
        loss, weight = row_losses(fleet, factors | leaves, devices, rows)
    own = (loss * weight).sum(1)
    # A factor that no sample reads (of an expert that none is sent to, say) has gradient 0.
    every = list(leaves.values())
    found = (
        torch.autograd.grad(own.sum(), every, allow_unused=True, materialize_grads=True)
        if own.requires_grad
        else map(torch.zeros_like, every)
    )
    return own.detach(), dict(zip(leaves, found, strict=True))


def row_losses(
    fleet: Fleet, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "K b"], Float[Tensor, "K b"]]:
    """Losses of unequally many samples of some devices, and the weights that give each device's mean.

    All samples lie end to end, or those of like length are computed together (there a shorter row is filled up with its
    first sample, at weight 0), or each is computed alone: as `FastPaths` of the backbone says.
    """
    paths = fleet.backbone.paths
    assert len(devices) == 1 or paths.stacking, "devices come one at a time where they may not be stacked"
    width = max(len(row) for row in rows)
    weight = torch.tensor([[(j < len(row)) / len(row) for j in range(width)] for row in rows])
    if paths.packing:
        loss = packed_losses(fleet, factors, devices, rows)
        return loss, weight.to(loss)
    full = [[*row, *[row[0]] * (width - len(row))] for row in rows]
    sizes = [[len(fleet.shards[k][i].ids) for i in row] for k, row in zip(devices, full, strict=True)]
    order = [sorted(range(width), key=own.__getitem__) for own in sizes]
    widths = [max(column) for column in zip(*map(sorted, sizes), strict=True)]
    once = PASS_TOKENS[fleet.backbone.device.type]
    cuts = buckets(widths, [len(rows)] * width, lambda count, tokens: count * tokens + once)
    cuts = cuts if paths.batching else [(column, column + 1) for column in range(width)]
    chosen = [[[row[j] for j in o[a:b]] for row, o in zip(full, order, strict=True)] for a, b in cuts]
    parts = [stacked_loss(fleet, factors, devices, part) for part in chosen]
    loss = torch.cat(parts, 1).gather(1, torch.tensor(order).argsort(1).to(parts[0].device))
    return loss, weight.to(loss)


def packed_losses(
    fleet: Fleet, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "K b"]:
    """Loss of every sample in one pass over all, end to end; 0 where a row is shorter than the longest."""
    samples, kept = taken(fleet, devices, rows)
    counts = [len(row) for row in rows]
    batch = pack(samples, counts)
    with adapted(fleet.backbone, factors, batch.spans):
        scores = packed_logits(fleet.backbone, batch, counts, None if kept is None else torch.cat(kept)[batch.first])
    losses = torch.split(sample_losses(scores, batch.targets), counts)
    return torch.nn.utils.rnn.pad_sequence(list(losses), batch_first=True)


def stacked_loss(
    fleet: Fleet, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "K b"]:
    """Loss of every sample, device by device; `rows` are equally many samples of each device's shard."""
    samples, kept = taken(fleet, devices, rows)
    batch = collate(samples, fleet.backbone.tokenizer.pad_token_id, fleet.backbone.paths.left)
    hidden = None if kept is None else stack(kept, fleet.backbone.paths.left)
    with adapted(fleet.backbone, factors):
        scores = logits(fleet.backbone, batch.ids, batch.mask, batch.targets.shape[1], hidden)
    limits = [fleet.classes[int(fleet.task_of[k])] for k, row in zip(devices, rows, strict=True) for _ in row]
    return sample_losses(only_classes(scores, limits), batch.targets).reshape(len(devices), -1)


def taken(
    fleet: Fleet, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[list[Encoded], list[Float[Tensor, "_ H"]] | None]:
    """Samples of some devices, device by device, and what the layers below the adapters make of them, if kept."""
    samples = [fleet.shards[k][i] for k, row in zip(devices, rows, strict=True) for i in row]
    kept = [fleet.cache.rows(f"device {k}", fleet.shards[k], row) for k, row in zip(devices, rows, strict=True)]
    return samples, None if kept[0] is None else [state for part in kept for state in part or ()]


def only_classes(scores: Float[Tensor, "rows last C"], limits: Sequence[int]) -> Float[Tensor, "rows last C"]:
    """Scores with the classes that a row's task does not have ruled out; limit 0 (causal LM) rules out none."""
    if not any(limits):
        return scores
    beyond = torch.arange(scores.shape[-1])[None, :] >= torch.tensor(limits)[:, None]
    return scores.masked_fill(beyond[:, None, :].to(scores.device), -torch.inf)


def sample_losses(scores: Float[Tensor, "rows last C"], wanted: Int[Tensor, "rows last"]) -> Float[Tensor, " rows"]:
    """Cross-entropy of each sample in nats, mean over its target positions."""
    targets = wanted.to(scores.device)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    below = wide - wide.detach().amax(-1, keepdim=True)
    # `cross_entropy` adds a large vocabulary up one by one: in float32 1e-5 off, more than all layers together.
    each = below.logsumexp(-1) - below.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    counted = targets != IGNORED
    return each.where(counted, 0.0).sum(1) / counted.sum(1)
