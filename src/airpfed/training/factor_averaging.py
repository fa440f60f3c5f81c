"""FedEx-LoRA and FLoRA: error-free upper bounds whose server needs every device's factors, not only their sum.

After its local steps device k holds A_k, B_k. Both rules give the layer the effective weight that averaging whole
weights would give, W0 + sum_k w_k c B_k A_k with w_k = D_k/D, by adding a matrix of up to full rank to W0:

- FedEx-LoRA (Singhal, Ponkshe and Vepakomma, 2024): A and B become their means, W0 += c (sum_k w_k B_k A_k - B A).
- FLoRA (Wang et al., 2024): W0 += c sum_k w_k B_k A_k, the product of the stacked factors; then a fresh A, and B = 0.

Heads become means: over their task's devices, or over all devices if heads are global. The server has no optimizer:
parameters change by the devices' local steps alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.air import resources
from airpfed.air.round_cost import listening_seconds, radio_use
from airpfed.air.schedule import Uplink
from airpfed.air.symbols import uses_of
from airpfed.air.uplink import Aggregate
from airpfed.core.rng import stream
from airpfed.core.run_files import Ledger, MeanSquaredErrors
from airpfed.devices.clients import Clients
from airpfed.model.layers import StackedLoRA
from airpfed.model.layout import Vectors, initial_vectors
from airpfed.training.round import LocalTraining, finite
from airpfed.training.state import DeviceState, State

Rule = Callable[[Clients, Float[Tensor, "K d"], Float[Tensor, " K"], int], tuple[Tensor, Tensor]]
"""(clients, A_k and B_k as rows, w, t) -> shared vector after the round (d), what is added to the frozen weights."""


@dataclass(frozen=True)
class FactorAveraging:
    """A rule and its inputs.

    link: the uplink, for D_k and the cost of sending. local_training: the devices' local steps, whose rate turns
    pseudo-gradients into changes.
    """

    rule: Rule
    clients: Clients
    link: Uplink
    local_training: LocalTraining


def average_factors(
    averaging: FactorAveraging, state: State, gradients: Vectors, cursors: Int[Tensor, " K"]
) -> tuple[State, Aggregate, Bool[Tensor, " K"]]:
    """A round in place of `round_step`: every device that is present sends all its factors, without an error.

    gradients: pseudo-gradients, scope -> (K, d_scope). A device without a finite one is absent and has no weight.
    In the returned `Aggregate`, `shared` and `personal` hold the parameters after the round instead of gradients.
    """
    present, t, server, link = finite(gradients), state.round + 1, state.server, averaging.link
    # E local steps at rate lr change the parameters by -E lr times the pseudo-gradient.
    scale = averaging.local_training.steps * averaging.local_training.lr
    change = {scope: -scale * torch.where(present[:, None], rows, 0.0) for scope, rows in gradients.items()}
    samples = link.samples * present
    task_samples = torch.stack([samples * (averaging.clients.task_of == n) for n in range(len(link.lengths))])
    task_weights = task_samples / task_samples.sum(1, keepdim=True).clamp(min=1)
    heads = server.personal.value + (task_weights @ change["task"].double()).float()
    shared, added = server.shared.value, server.added
    if present.any():
        row, increment = averaging.rule(averaging.clients, shared + change["global"], samples / samples.sum(), t)
        shared, added = row[None, :].float(), added + increment[None, :].float()
    received = Aggregate(
        shared=shared[0],
        personal=heads,
        active_tasks=task_samples.sum(1) > 0,
        mse=MeanSquaredErrors(),
        pi=None,
        pi_claimed=None,
        ledger=cost(link, present),
        correlation=(),
        correlation_statistics=server.correlation_statistics,
    )
    server = replace(
        server,
        shared=replace(server.shared, value=shared),
        personal=replace(server.personal, value=heads),
        added=added,
    )
    return State(t, server, DeviceState(state.devices.own, cursors), state.frozen), received, present


def fedex(clients: Clients, rows: Float[Tensor, "K d"], weights: Float[Tensor, " K"], _t: int) -> tuple[Tensor, Tensor]:
    """The means of the factors, and c (mean of the products - product of the means)."""
    mean = (weights @ rows.double())[None, :]
    return mean[0], products(clients, rows, weights) - products(clients, mean, torch.ones(1))


def flora(clients: Clients, rows: Float[Tensor, "K d"], weights: Float[Tensor, " K"], t: int) -> tuple[Tensor, Tensor]:
    """Fresh adapters (with the mean of global heads), and sum_k w_k c B_k A_k, which the server adds to the base.

    rows: the devices' parameters of scope `global`. weights: w_k, of sum 1. Random: the fresh A, stream (seed, "fresh
    adapters", t).
    """
    fresh = initial_vectors(clients.layout, clients.backbone.heads, stream(clients.seed, "fresh adapters", t))[
        "global"
    ][0]
    for first, last in clients.layout.groups("global")[2:]:
        fresh[first:last] = (weights @ rows[:, first:last].double()).float()
    return fresh, products(clients, rows, weights)


RULES: dict[str, Rule] = {"fedex": fedex, "flora": flora}


def products(clients: Clients, rows: Float[Tensor, "K d"], weights: Float[Tensor, " K"]) -> Float[Tensor, " d_W"]:
    """sum_k w_k c B_k A_k of every adapted layer, layers sorted, as one vector in float64."""
    entries = {entry.key: entry for entry in clients.layout.entries if entry.scope == "global"}
    parts = []
    for name in sorted(clients.backbone.target_layers):
        a, b = (entries[f"{name}.{kind}"] for kind in ("A", "B"))
        a_rows = rows[:, a.start : a.stop].reshape(-1, *a.shape).double()
        b_rows = rows[:, b.start : b.stop].reshape(-1, *b.shape).double()
        layer = clients.backbone.layers[name]
        assert isinstance(layer, StackedLoRA)
        parts.append(layer.scale * torch.einsum("k,klr,krq->lq", weights.double(), b_rows, a_rows).flatten())
    return torch.cat(parts)


def cost(link: Uplink, present: Bool[Tensor, " K"]) -> Ledger:
    """Every present device sends its factors and its head in a slot of its own; all factors return to every device.

    As for every error-free link: two real entries per channel use, downlink bits, and no radiated energy.
    """
    d_s = sum(stop - start for start, stop in link.shared_groups)
    slots = [uses_of(d_s + link.lengths[n], link.packing) for n in link.task_of[present].tolist()]
    zero = torch.zeros(len(link.samples), dtype=torch.float64)
    downlink = resources.BITS_PER_SCALAR * (int(present.sum()) * d_s + sum(link.lengths))
    listening = listening_seconds(link, int(present.sum()) * d_s)
    traffic = resources.Traffic(tuple(slots), 0, zero, zero, downlink, 0, sum(listening))
    symbols = torch.tensor([math.ceil(uses / link.subcarriers) for uses in slots], dtype=torch.float64)
    sending = zero.clone()
    sending[present] = symbols * link.subcarriers * resources.use_seconds(link.bandwidth_hz)
    radio = radio_use(link, zero, sending, listening)
    return resources.ledger_of(traffic, zero, torch.ones_like(zero), link.bandwidth_hz, link.subcarriers, radio)
