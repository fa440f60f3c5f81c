"""A small uplink to try schemes, designs and aggregators on: five devices, two tasks, and their gradients."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.channels.fading import FadingParameters, fading_channels
from airpfed.air.impairments import NONE
from airpfed.air.network import Network
from airpfed.air.schedule import Updates, Uplink
from airpfed.air.schemes import exact_sums
from airpfed.core.rng import stream

GAIN = 1e-10
"""Mean power gain of every channel of the small uplink."""
TASK_OF = (0, 0, 1, 1, 1)
"""The task of each device of the small uplink."""
LENGTHS = (37, 30)
"""Entries of each task's p-vector: they end before the last column, as with heads of unlike width."""


def flat_network(gain: Tensor, antennas: int, **changes: Any) -> Network:
    """A network with flat Rayleigh fading.

    gain: mean power gains, (K), or (S, K) for S stations of `antennas` antennas. changes: of the `FadingParameters`.
    """
    gain = gain if gain.dim() == 2 else gain[None]
    stations, devices = gain.shape
    parameters = FadingParameters(
        gain=gain,
        antennas=antennas,
        los=torch.zeros(stations * antennas, devices, dtype=torch.complex128),
        profile=torch.ones(1, dtype=torch.float64),
        centres=torch.zeros(1, dtype=torch.float64),
        time_correlation=0.0,
        round_correlation=0.0,
        names=(),
    )
    parameters = replace(parameters, **changes)
    return Network(
        stations=torch.zeros(stations, 2, dtype=torch.float64),
        devices=torch.zeros(devices, 2, dtype=torch.float64),
        gain=gain,
        antennas=antennas,
        names=parameters.names,
        scattered=parameters.gain,
        channel_model=partial(fading_channels, parameters),
    )


def small_uplink(antennas: int = 8, **changes: Any) -> Uplink:
    """An error-free uplink of five devices of two tasks, with unequal data, equal gains and 15 dB at one antenna.

    changes: of the fields of `Uplink`.
    """
    link = Uplink(
        send=exact_sums,
        cost=None,
        design=None,
        batched=False,
        refine=None,
        rescale=False,
        correlation=0.0,
        topology="single_cell",
        backhaul_bits=None,
        access="tdma",
        personal_slots=2,
        packing="iq",
        normalizer="per_device",
        task_names=("colours", "moods"),
        task_of=torch.tensor(TASK_OF),
        samples=torch.tensor([3.0, 5.0, 4.0, 6.0, 2.0], dtype=torch.float64),
        network=flat_network(torch.full((5,), GAIN, dtype=torch.float64), antennas),
        power_limit=torch.tensor([0.1, 0.12, 0.08, 0.1, 0.11], dtype=torch.float64),
        noise=0.1 * GAIN / 10**1.5,
        csi_error=0.0,
        impairments=NONE,
        coherence_symbols=7,
        bandwidth_hz=1e6,
        subcarriers=16,
        subcarrier_groups=1,
        shared_groups=((0, 20), (20, 41)),
        personal_groups=((0, 16), (16, 37)),
        personal_rows=(0, 1),
        lengths=LENGTHS,
        seed=3,
    )
    return replace(link, **changes)


def task_entries(link: Uplink) -> Bool[Tensor, "K d_p"]:
    """The entries of each device's p-vector that its task has."""
    lengths = torch.tensor(link.lengths)[link.task_of]
    return torch.arange(max(link.lengths)) < lengths[:, None]


def random_updates(link: Uplink, draw: int) -> Updates:
    """Gradients of all devices, of unlike size: normal, with the mean 0 and a given deviation in each normaliser group.

    Such gradients have the mean powers that claims assume of the symbols. Random: the stream of `draw`.
    """
    rng, size = stream(7, "updates", draw), torch.linspace(0.5, 2.0, len(link.samples), dtype=torch.float64)[:, None]
    shared = torch.zeros(len(size), link.shared_groups[-1][1], dtype=torch.float64)
    personal = torch.zeros(len(size), max(link.lengths), dtype=torch.float64)
    everywhere, own = torch.ones_like(shared, dtype=torch.bool), task_entries(link)
    for vectors, groups, valid in (
        (shared, link.shared_groups, everywhere),
        (personal, link.personal_groups, own),
    ):
        for first, last in groups:
            entries = torch.randn(len(size), last - first, dtype=torch.float64, generator=rng)
            mask = valid[:, first:last]
            count = mask.sum(1, keepdim=True)
            centred = (entries - (entries * mask).sum(1, keepdim=True) / count) * mask
            vectors[:, first:last] = centred / (centred.square().sum(1, keepdim=True) / count).sqrt() * size
    return Updates(shared.float(), personal.float(), torch.ones(len(size), dtype=torch.bool))


def nan_when_absent(updates: Updates, present: Bool[Tensor, " K"]) -> Updates:
    """The gradients of a round with some devices absent, whose rows become NaN."""
    shared, personal = (torch.where(present[:, None], x, torch.nan) for x in (updates.shared, updates.personal))
    return Updates(shared, personal, present)


def exact_means(link: Uplink, updates: Updates) -> tuple[Float[Tensor, " d_s"], Float[Tensor, "N d_p"]]:
    """The weighted means that the servers ask for, G^s and G_n^p, by loops over the present devices."""
    weight = link.samples * updates.present
    shared = torch.zeros(updates.shared.shape[1], dtype=torch.float64)
    personal = torch.zeros(len(link.task_names), updates.personal.shape[1], dtype=torch.float64)
    for device in updates.present.nonzero().flatten().tolist():
        task = int(link.task_of[device])
        shared += weight[device] / weight.sum() * updates.shared[device].double()
        personal[task] += weight[device] / weight[link.task_of == task].sum() * updates.personal[device].double()
    return shared, personal


def fixed_channels(network: Network) -> Network:
    """The network with the channels of seed 0 whatever the seed, so that only noise and rounding vary with it."""
    draw: Callable[[int, int, range], tuple[Tensor, Tensor]] = network.channel_model

    def channel_model(seed: int, t: int, blocks: range) -> tuple[Tensor, Tensor]:
        return draw(0, t, blocks)

    return replace(network, channel_model=channel_model)


def without_channels(network: Network, devices: Sequence[int]) -> Network:
    """The network with channels of 0 for some devices, in every block; their mean gains stay."""
    draw: Callable[[int, int, range], tuple[Tensor, Tensor]] = network.channel_model

    def channel_model(seed: int, t: int, blocks: range) -> tuple[Tensor, Tensor]:
        h, los = (part.clone() for part in draw(seed, t, blocks))
        h[..., list(devices)], los[..., list(devices)] = 0, 0
        return h, los

    return replace(network, channel_model=channel_model)


def sums_difference(values: tuple[Float[Tensor, "..."], ...], expected: tuple[Float[Tensor, "..."], ...]) -> float:
    """The largest difference of several tensors, relative to the largest entry of each."""
    parts = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300))
        for a, b in zip(values, expected, strict=True)
    ]
    return max(parts) if all(part == part for part in parts) else float("inf")
