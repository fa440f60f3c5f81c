"""The link without any learning: random symbols through random channels, claimed beside measured, design by design."""

import time
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.channel import estimated
from airpfed.air.designs.certificate import lower_bound
from airpfed.air.plan import Air, DesignFunction, Job
from airpfed.air.slot import Slot, Transceiver, gains
from airpfed.air.superpose import collapsed, receiver_noise
from airpfed.air.symbols import pack, unpack
from airpfed.air.uplink import claim
from airpfed.streams import stream


@dataclass(frozen=True)
class Channels:
    """B channels of one slot: what designs are asked, and the true channels, of which they see estimates."""

    job: Job
    asked: tuple[Slot, ...]
    true: Complex[Tensor, "B M K"]


@dataclass(frozen=True)
class SlotStudy:
    """One design in one slot over B channels, per target: MSEs per normalised real entry, linear.

    silence: MSE if nothing is sent.
    """

    claimed: Float[Tensor, "B T"]
    measured: Float[Tensor, "B T"]
    bias: Float[Tensor, "B T"]
    silence: Float[Tensor, "B T"]
    iterations: int
    seconds: float


def draw(air: Air, job: Job, gain: Float[Tensor, "B K"]) -> Channels:
    """Draw B channels of a slot; gain: mean power gain of every device in each draw. Random: fading and CSI error.

    One batch for all draws, or, with CSI error, whose variance follows the gain, one a draw.
    """
    pairs = [estimated(g, air.antennas, air.csi_error, air.seed, 0, range(b, b + 1)) for b, g in enumerate(gain)]
    known, true = (torch.cat([pair[i] for pair in pairs])[:, :, job.devices] for i in (0, 1))
    here = gain[:, job.devices]
    half = 0.5 if air.packing == "real" else 1.0
    batches = [slice(None)] if air.csi_error == 0 else [slice(b, b + 1) for b in range(len(here))]
    power = air.power[job.devices]
    asked = tuple(
        Slot(known[b], job.weights, job.importance, power, half * air.noise, half * air.csi_error * here[b][0])
        for b in batches
    )
    return Channels(job, asked, true)


def bounds(channels: Channels) -> Float[Tensor, " B"] | None:
    """What no transceiver can beat for i.i.d. symbols, in each channel; None where no bound is known."""
    if len(channels.job.weights) > 1:
        return None
    first = channels.asked[0]
    whole = replace(first, h=torch.cat([s.h for s in channels.asked]), csi_variance=torch.zeros_like(first.power))
    return lower_bound(whole)


def study(air: Air, design: DesignFunction, channels: Channels, entries: int, rho: float) -> SlotStudy:
    """Design for every channel and transmit `entries` random real entries of correlation rho through it.

    Random: symbols, noise and scrambling, fixed by the seed, the slot and the draw; all designs see the same.
    """
    job = channels.job
    begin = time.perf_counter()
    each = [design(slot) for slot in channels.asked]
    seconds = time.perf_counter() - begin
    made = Transceiver(
        torch.cat([t.receiver for t in each]), torch.cat([t.transmit for t in each]), sum(t.iterations for t in each)
    )
    ones = torch.ones(len(job.devices), dtype=torch.float64)
    claims = [claim(slot, one, ones, air.packing) for slot, one in zip(channels.asked, each, strict=True)]
    measured, bias = transmit(air, job, channels.true, made, entries, rho)
    power = job.weights.square().sum(1) * (1 - rho) + job.weights.sum(1).square() * rho
    silence = power.expand(len(channels.true), -1)
    return SlotStudy(torch.cat(claims), measured, bias, silence, made.iterations, seconds)


def correlated(devices: int, entries: int, rho: float, rng: torch.Generator) -> Float[Tensor, "K d"]:
    """Unit-power symbols with E[u_j u_k] = rho, 0 <= rho <= 1: sqrt(1 - rho) own part and sqrt(rho) common part."""
    own = torch.randn(devices, entries, dtype=torch.float64, generator=rng)
    common = torch.randn(1, entries, dtype=torch.float64, generator=rng)
    symbols: Tensor = (1 - rho) ** 0.5 * own + rho**0.5 * common
    return symbols


def transmit(
    air: Air, job: Job, true: Complex[Tensor, "B M K"], made: Transceiver, entries: int, rho: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Measured squared error and squared bias per entry of random symbols through each channel."""
    found, gain = [], gains(true, made)
    for block in range(len(true)):
        random = stream(air.seed, "link", job.name, block)
        x = pack(correlated(len(job.devices), entries, rho, random), air.packing)
        noise = receiver_noise(made, block, air.noise, x.shape[1], random)
        signs = 2.0 * torch.randint(2, (len(job.weights), x.shape[1]), generator=random).double() - 1.0
        heard = collapsed(gain[block], x, noise, job.group_of, signs)
        wanted = job.weights.to(x.dtype) @ x
        found.append([unpack(error - wanted, air.packing, entries) for error in (heard.received, heard.own)])
    mean = [torch.stack([pair[i].square().mean(1) for pair in found]) for i in (0, 1)]
    return mean[0], mean[1]


def mean_db(values: Float[Tensor, " B"]) -> tuple[float, float]:
    """Mean of decibels over draws, and its standard error (nan for one draw)."""
    db = 10 * values.clamp_min(1e-300).log10()
    return float(db.mean()), float(db.std() / len(db) ** 0.5) if len(db) > 1 else float("nan")
