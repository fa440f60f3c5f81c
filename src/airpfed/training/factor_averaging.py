"""FedEx-LoRA and FLoRA: error-free upper bounds whose server needs every device's factors, not only their sum.

After its local steps device k holds A_k, B_k. Both rules give the layer the effective weight that averaging whole
weights would give, W0 + sum_k w_k c B_k A_k with w_k = D_k/D, by adding a matrix of up to full rank to W0:

- FedEx-LoRA (Singhal, Ponkshe and Vepakomma, 2024): A and B become their means, W0 += c (sum_k w_k B_k A_k - B A).
- FLoRA (Wang et al., 2024): W0 += c sum_k w_k B_k A_k, the product of the stacked factors; then a fresh A, and B = 0.

Heads become means: over their task's devices, or over all where they are global. No server optimiser: what moves is
what the devices' steps moved.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air import resources
from airpfed.air.schedule import Uplink
from airpfed.air.symbols import uses_of
from airpfed.air.uplink import Aggregate
from airpfed.core.rng import stream
from airpfed.core.run_files import Ledger, MeanSquaredErrors
from airpfed.devices.gradients import Clients
from airpfed.model.adapters import StackedLoRA
from airpfed.model.layout import Vectors, initial
from airpfed.training.round import finite
from airpfed.training.state import DeviceState, State

Rule = Callable[[Clients, Float[Tensor, "K d"], Float[Tensor, " K"], int], tuple[Tensor, Tensor]]
"""(fleet, A_k and B_k as rows, w, round) -> shared vector after the round (d), what is added to the frozen weights."""


@dataclass(frozen=True)
class Merge:
    """A rule and what it needs.

    link: D_k, and what sending costs. span: E local_lr, so span * pseudo-gradient = way.
    """

    rule: Rule
    clients: Clients
    link: Uplink
    span: float


def merge(how: Merge, state: State, gradients: Vectors, cursors: Tensor) -> tuple[State, Aggregate, Bool[Tensor, " K"]]:
    """A round, in the place of `rounds.step.step`: every device present sends all its factors, without an error.

    gradients: pseudo-gradients, scope -> (K, d_scope). A device without a finite one is absent: not sent, no weight.
    """
    present, t, server = finite(gradients), state.round + 1, state.server
    way = {scope: -how.span * torch.where(present[:, None], rows, 0.0) for scope, rows in gradients.items()}
    samples = how.link.samples * present
    own = torch.stack([samples * (how.clients.task_of == n) for n in range(len(how.link.lengths))])
    heard = own.sum(1) > 0
    means = own / own.sum(1, keepdim=True).clamp(min=1)
    heads = server.personal.value + (means @ way["task"].double()).float()
    shared, added = server.shared.value, server.added
    if present.any():
        row, more = how.rule(how.clients, shared + way["global"], samples / samples.sum(), t)
        shared, added = row[None, :].float(), added + more[None, :].float()
    after = replace(
        server,
        shared=replace(server.shared, value=shared),
        personal=replace(server.personal, value=heads),
        added=added,
    )
    received = Aggregate(
        shared[0],
        heads,
        heard,
        MeanSquaredErrors(),
        None,
        None,
        cost(how.link, present),
        (),
        server.correlation_statistics,
    )
    return State(t, after, DeviceState(state.devices.own, cursors), state.frozen), received, present


def fedex(clients: Clients, rows: Float[Tensor, "K d"], weights: Float[Tensor, " K"], _t: int) -> tuple[Tensor, Tensor]:
    """Means of the factors, and c (mean of the products - product of the means)."""
    mean = (weights @ rows.double())[None, :]
    return mean[0], products(clients, rows, weights) - products(clients, mean, torch.ones(1))


def flora(clients: Clients, rows: Float[Tensor, "K d"], weights: Float[Tensor, " K"], t: int) -> tuple[Tensor, Tensor]:
    """Fresh adapters, and c times the mean of the products. Random: the fresh A, by seed and round."""
    fresh = initial(clients.layout, clients.backbone.heads, stream(clients.seed, "fresh adapters", t))["global"][0]
    for first, last in clients.layout.groups("global")[2:]:
        fresh[first:last] = (weights @ rows[:, first:last].double()).float()
    return fresh, products(clients, rows, weights)


RULES: dict[str, Rule] = {"fedex": fedex, "flora": flora}


def products(clients: Clients, rows: Float[Tensor, "K d"], weights: Float[Tensor, " K"]) -> Float[Tensor, " d_W"]:
    """sum_k w_k c B_k A_k of every adapted layer, sorted and flat, in float64."""
    place = {entry.key: entry for entry in clients.layout.entries if entry.scope == "global"}
    parts = []
    for layer in sorted(clients.backbone.sites):
        a, b = (place[f"{layer}.{kind}"] for kind in ("A", "B"))
        downs = rows[:, a.start : a.stop].reshape(-1, *a.shape).double()
        ups = rows[:, b.start : b.stop].reshape(-1, *b.shape).double()
        site = clients.backbone.layers[layer]
        assert isinstance(site, StackedLoRA)
        parts.append(site.scale * torch.einsum("k,klr,krq->lq", weights.double(), ups, downs).flatten())
    return torch.cat(parts)


def cost(link: Uplink, present: Bool[Tensor, " K"]) -> Ledger:
    """Every device present sends its own factors and head in a slot of its own; all factors come back to everyone.

    As for every error-free link: channel uses at two real entries each, downlink bits, and no energy.
    """
    d_s = sum(last - first for first, last in link.shared_groups)
    slots = [uses_of(d_s + link.lengths[n], link.packing) for n in link.task_of[present].tolist()]
    nothing = torch.zeros(len(link.samples))
    downlink = resources.BITS_PER_SCALAR * (int(present.sum()) * d_s + sum(link.lengths))
    traffic = resources.Traffic(tuple(slots), 0, nothing, nothing, downlink, 0)
    return resources.entry(traffic, nothing, torch.ones_like(nothing), link.bandwidth_hz, link.subcarriers)
