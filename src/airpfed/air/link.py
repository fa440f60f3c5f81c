"""The link without any learning: random symbols through random channels, claimed beside measured, design by design."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.correlation import Correlation
from airpfed.air.designs.certificate import lower_bound
from airpfed.air.pieces import Piece, antennas_of, asked_of, one_by_one, overlap, rescaled
from airpfed.air.plan import Air, Job
from airpfed.air.slot import Transceiver, mse
from airpfed.air.symbols import Normalised, uses_of
from airpfed.air.transmit import transmitted
from airpfed.streams import stream


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


def draw(air: Air, job: Job, drops: Drops, entries: int, rho: float) -> Piece:
    """One slot over B channels, each a drop of its own, and `entries` random real entries to send through each.

    rho: correlation of the devices' symbols; receivers know it (as if estimated without error) unless `air.correlation`
    says what they believe. Random: symbols, fixed by seed, slot and draw.
    """
    blocks, uses = len(drops.known), uses_of(entries, air.packing)
    symbols = [correlated(job, entries, rho, stream(air.seed, "link", job.name, block)) for block in range(blocks)]
    ones = torch.ones(len(job.weights), dtype=torch.float64)
    group = Normalised(
        torch.cat(symbols, 1), job.weights, ones, torch.zeros_like(ones),
        torch.ones(len(job.devices), dtype=torch.float64),
        torch.full((len(job.weights),), blocks * entries),
    )  # fmt: skip
    spans = tuple((block * uses, (block + 1) * uses) for block in range(blocks))
    asked = asked_of(air, job, job.weights, drops.known, drops.csi_variance)
    true = drops.true[:, antennas_of(air, job)]
    expected = rho if air.correlation is None else air.correlation
    return Piece(
        job, group, spans, asked, true[:, :, job.devices], *overlap(group, job.group_of, spans, air.packing),
        Correlation(expected, expected), air.task_of[job.devices], job.name,
    )  # fmt: skip


def correlated(job: Job, entries: int, rho: float, rng: torch.Generator) -> Float[Tensor, "K d"]:
    """Unit-power symbols of a slot's streams, E[u_j u_k] = rho, 0 <= rho <= 1; 0 between s- and p-streams.

    sqrt(1 - rho) own part and sqrt(rho) common part.
    """
    own = torch.randn(len(job.devices), entries, dtype=torch.float64, generator=rng)
    common = torch.randn(2, entries, dtype=torch.float64, generator=rng)
    kind = (job.mix[[task is None for task in job.targets]] == 0).all(0).long()[job.group_of]
    symbols: Tensor = (1 - rho) ** 0.5 * own + rho**0.5 * common[kind]
    return symbols


def bounds(piece: Piece) -> Float[Tensor, " B"] | None:
    """What no transceiver can beat for i.i.d. symbols, in each channel; None where no bound is known."""
    return lower_bound(piece.asked) if len(piece.job.weights) == 1 else None


def study(air: Air, pieces: Sequence[Piece]) -> tuple[list[SlotStudy], list[Transceiver], float]:
    """Design all slots of B rounds and transmit through them. Returns (a study a slot, transceivers, design seconds).

    Random: noise and scrambling, fixed by the seed and the slot; all designs see the same.
    """
    begin = time.perf_counter()
    made = transceivers(air, pieces)
    seconds = time.perf_counter() - begin
    return [studied(air, piece, one) for piece, one in zip(pieces, made, strict=True)], made, seconds


def transceivers(air: Air, pieces: Sequence[Piece]) -> list[Transceiver]:
    """The designs of all slots of B rounds, each block a round of its own."""
    made = one_by_one(air, pieces)
    if air.refine is not None:
        uses = [float(piece.job.vectors.shape[1]) for piece in pieces]
        devices = [piece.job.devices for piece in pieces]
        powers = [torch.ones(len(one), dtype=torch.float64) for one in devices]
        made = air.refine([piece.asked for piece in pieces], devices, uses, powers, made)
    return rescaled(air, pieces, made)


def studied(air: Air, piece: Piece, made: Transceiver) -> SlotStudy:
    """The errors of a slot per entry, channel by channel."""
    outcome = transmitted(air, piece, made, 0)
    entries = outcome.scale / len(piece.spans)
    silence = (outcome.silence / outcome.scale).expand(len(piece.spans), -1)
    iid = mse(piece.asked, made) @ piece.job.mix.square().T
    return SlotStudy(outcome.claimed / entries, outcome.measured / entries, outcome.bias / entries, iid, silence)


def mean_db(values: Float[Tensor, " B"]) -> tuple[float, float]:
    """Mean of decibels over draws, and its standard error (nan for one draw)."""
    db = 10 * values.clamp_min(1e-300).log10()
    return float(db.mean()), float(db.std() / len(db) ** 0.5) if len(db) > 1 else float("nan")
