"""The link without any learning: random symbols through random channels, claimed beside measured, design by design."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.correlation import Correlation
from airpfed.air.designs.lower_bound import lower_bound
from airpfed.air.problem import Transceiver, mse
from airpfed.air.schedule import SlotPlan, Uplink
from airpfed.air.segments import Segment, antennas_of, one_by_one, overlap, problem_of, rescaled
from airpfed.air.symbols import NormalizedGroup, uses_of
from airpfed.air.transmit import transmitted
from airpfed.core.rng import stream


@dataclass(frozen=True)
class SlotStudy:
    """One design in one slot over B channels, per target: MSEs per normalised real entry, linear.

    iid: what the transceivers' error would be for i.i.d. symbols, as the lower bounds are. silence: MSE if nothing is
    sent.
    """

    claimed: Float[Tensor, "B T"]
    measured: Float[Tensor, "B T"]
    bias: Float[Tensor, "B T"]
    iid: Float[Tensor, "B T"]
    silence: Float[Tensor, "B T"]


@dataclass(frozen=True)
class Drops:
    """Channels of B drops: as designs see them, as they are, the variance of the estimates' errors, mean gains."""

    known: Complex[Tensor, "B M K"]
    true: Complex[Tensor, "B M K"]
    csi_variance: Float[Tensor, "B m K"]
    gain: Float[Tensor, "B S K"]


def draw(link: Uplink, slot: SlotPlan, drops: Drops, entries: int, rho: float) -> Segment:
    """One slot over B channels, each a drop of its own, and `entries` random real entries to send through each.

    rho: correlation of the devices' symbols; receivers know it (as if estimated without error) unless `air.correlation`
    says what they believe. Random: symbols, fixed by seed, slot and draw.
    """
    blocks, uses = len(drops.known), uses_of(entries, link.packing)
    symbols = [correlated(slot, entries, rho, stream(link.seed, "link", slot.name, block)) for block in range(blocks)]
    ones = torch.ones(len(slot.weights), dtype=torch.float64)
    group = NormalizedGroup(
        torch.cat(symbols, 1), slot.weights, ones, torch.zeros_like(ones),
        torch.ones(len(slot.devices), dtype=torch.float64),
        torch.full((len(slot.weights),), blocks * entries),
    )  # fmt: skip
    block_ranges = tuple((block * uses, (block + 1) * uses) for block in range(blocks))
    problem = problem_of(link, slot, slot.weights, drops.known, drops.csi_variance)
    true = drops.true[:, antennas_of(link, slot)]
    expected = rho if link.correlation is None else link.correlation
    return Segment(
        slot, group, block_ranges, problem, true[:, :, slot.devices], *overlap(group, slot.group_of, block_ranges,
        link.packing),
        Correlation(expected, expected), link.task_of[slot.devices], slot.name,
    )  # fmt: skip


def correlated(slot: SlotPlan, entries: int, rho: float, rng: torch.Generator) -> Float[Tensor, "K d"]:
    """Unit-power symbols of a slot's streams, E[u_j u_k] = rho, 0 <= rho <= 1; 0 between s- and p-streams.

    sqrt(1 - rho) own part and sqrt(rho) common part.
    """
    own = torch.randn(len(slot.devices), entries, dtype=torch.float64, generator=rng)
    common = torch.randn(2, entries, dtype=torch.float64, generator=rng)
    kind = (slot.combining_matrix[[task is None for task in slot.targets]] == 0).all(0).long()[slot.group_of]
    symbols: Tensor = (1 - rho) ** 0.5 * own + rho**0.5 * common[kind]
    return symbols


def bounds(segment: Segment) -> Float[Tensor, " B"] | None:
    """What no transceiver can beat for i.i.d. symbols, in each channel; None where no bound is known."""
    return lower_bound(segment.problem) if len(segment.slot.weights) == 1 else None


def study(link: Uplink, segments: Sequence[Segment]) -> tuple[list[SlotStudy], list[Transceiver], float]:
    """Design all slots of B rounds and transmit through them. Returns (a study a slot, transceivers, design seconds).

    Random: noise and scrambling, fixed by the seed and the slot; all designs see the same.
    """
    begin = time.perf_counter()
    made = transceivers(link, segments)
    seconds = time.perf_counter() - begin
    return [studied(link, segment, one) for segment, one in zip(segments, made, strict=True)], made, seconds


def transceivers(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """The designs of all slots of B rounds, each block a round of its own."""
    made = one_by_one(link, segments)
    if link.refine is not None:
        uses = [float(segment.slot.vectors.shape[1]) for segment in segments]
        devices = [segment.slot.devices for segment in segments]
        powers = [torch.ones(len(one), dtype=torch.float64) for one in devices]
        made = link.refine([segment.problem for segment in segments], devices, uses, powers, made)
    return rescaled(link, segments, made)


def studied(link: Uplink, segment: Segment, made: Transceiver) -> SlotStudy:
    """The errors of a slot per entry, channel by channel."""
    outcome = transmitted(link, segment, made, 0)
    entries = outcome.scale / len(segment.block_ranges)
    silence = (outcome.silence / outcome.scale).expand(len(segment.block_ranges), -1)
    iid = mse(segment.problem, made) @ segment.slot.combining_matrix.square().T
    return SlotStudy(outcome.claimed / entries, outcome.measured / entries, outcome.bias / entries, iid, silence)


def mean_db(values: Float[Tensor, " B"]) -> tuple[float, float]:
    """Mean of decibels over draws, and its standard error (nan for one draw)."""
    db = 10 * values.clamp_min(1e-300).log10()
    return float(db.mean()), float(db.std() / len(db) ** 0.5) if len(db) > 1 else float("nan")
