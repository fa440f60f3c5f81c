"""The digital uplink: gradients as bits, sent one after another, in parts of the band, or in groups of the antennas.

A quantiser (`quantizers`) makes the bits, and no bit is lost: rates follow the estimated channel block by block, at a
gap to capacity. Pilots track the carrier phase; outages cost repetition; clipping bounds the SINR; channel estimation
errors count as noise. A device sends at its full power limit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Complex, Float, Int
from pydantic import Field
from torch import Tensor

from airpfed.air import resources
from airpfed.air.impairments import clipped_statistics
from airpfed.air.quantizers import DEFAULT_SHARE, QUANTIZERS, QuantizedVectors, coded_bits
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import SlotPlan, Uplink
from airpfed.air.slot_errors import ReceivedSums, SlotErrors, slot_scales
from airpfed.air.transmit import pass_backhaul
from airpfed.core.rng import stream

BLOCKS = 8
"""The least coherence blocks of a round over which rates are averaged."""


SECTIONS, SECTION_STEPS = 64, 4
"""The time of a round with OFDMA is searched by dividing an interval into so many parts, so many times."""
PILOTS = (1, 4, 16, 64, 256)
"""The numbers of pilots among which a link with derived pilots chooses."""
BISECTIONS = 30
"""Bisections of the share of the band that a device needs."""
PILOT_SHARE = 0.01
"""Share of a round's uses that pilots of devices on parts of the band may take before smaller groups are tried."""


Bits = Annotated[
    Literal[1, 2, 3, 4, 8], Field(description="bits per code: of each entry, or of each entry that top_k sends")
]
DigitalAccess = Annotated[
    Literal["orthogonal", "spatial", "ofdma"],
    Field(
        description="orthogonal: devices one after another; spatial: groups of devices that the antennas separate; "
        "ofdma: devices at once on parts of the band, each at its full power"
    ),
]
QuantizerName = Annotated[
    Literal["uniform", "eden", "top_k", "sign"],
    Field(
        description="uniform: stochastic rounding; eden: rotation, Lloyd-Max levels and an unbiased scale; top_k: the "
        "largest entries; sign: signs and mean magnitudes. The last two are biased and meant for devices.memory"
    ),
]
TopShare = Annotated[
    Annotated[float, Field(gt=0, le=1)] | None,
    Field(description=f"top_k: share of the entries that is sent; default {DEFAULT_SHARE}"),
]
Entropy = Annotated[
    bool, Field(description="charge the ideal length of a lossless code, from the empirical entropy of each vector")
]


@dataclass(frozen=True)
class Airtime:
    """The channel uses of a round.

    device_uses: channel uses of each device. uses, pilots: data and pilot uses of all groups. blocks: number of
    coherence blocks in which each device gets a modulation and coding scheme.
    """

    device_uses: Float[Tensor, " K"]
    uses: float
    pilots: int
    blocks: Float[Tensor, " K"]


def send_quantised(
    link: Uplink,
    slot: SlotPlan,
    t: int,
    *,
    bits: Bits = 4,
    access: DigitalAccess = "orthogonal",
    quantizer: QuantizerName = "uniform",
    share: TopShare = None,
    entropy: Entropy = False,
) -> ReceivedSums:
    """Gradients as bits from a quantiser; the servers add up what they decode.

    bits: bits a code. access, entropy: they decide the time on air, not the sums. quantizer, share: a row of
    `QUANTIZERS` and the share of the entries that `top_k` sends. Where errors have mean zero the devices know them and
    report their variance or their energy as one scalar each. With `top_k` and `sign` nothing is claimed, because the
    error of a sum depends on how the devices' errors correlate. Random: the rounding, or the signs of the rotation.
    """
    exact = torch.zeros(len(slot.weights), slot.vectors.shape[1], dtype=torch.float64)
    values, variance = torch.zeros_like(exact), torch.zeros_like(exact)
    for rows, gradients, sent in quantise_slot(link, slot, t, bits, quantizer, share):
        weights = slot.weights[:, rows]
        exact += weights @ gradients
        values += weights @ sent.values
        if sent.variance is not None:
            variance += weights.square() @ sent.variance
    sums, backhaul_variance = pass_backhaul(link, slot, values, t, slot.name)
    total_variance = variance if backhaul_variance is None else variance + backhaul_variance
    error = (slot.combining_matrix.square() @ total_variance).sum(1)
    bias, claimed, genie = torch.zeros_like(error), error, error
    if not QUANTIZERS[quantizer].unbiased:
        bias = (slot.combining_matrix @ (values - exact)).square().sum(1)
        claimed, genie = torch.full_like(error, torch.nan), bias + error
    zero_estimate_error, scale = slot_scales(link, slot)
    return ReceivedSums(
        sums=(slot.combining_matrix @ sums).to(slot.vectors.dtype),
        errors=SlotErrors(
            claimed=claimed,
            claimed_genie=genie,
            measured=(slot.combining_matrix @ (sums - exact)).square().sum(1),
            bias=bias,
            variance=error,
            zero_estimate_error=zero_estimate_error,
            scale=scale,
        ),
        joules=torch.zeros(len(slot.devices), dtype=torch.float64),
    )


def quantise_slot(
    link: Uplink, slot: SlotPlan, t: int, bits: int, quantizer: str, share: float | None
) -> Iterator[tuple[slice, Float[Tensor, "k d"], QuantizedVectors]]:
    """Yield streams of a slot, their vectors and these vectors as bits, some streams at a time.

    A function of its arguments alone, so that a ledger sees the bits that were sent. Random: stream (seed, "rounding",
    t, slot.name).
    """
    rng = stream(link.seed, "rounding", t, slot.name)
    for rows in row_chunks(*slot.vectors.shape):
        vectors = slot.vectors[rows]
        part = DEFAULT_SHARE if share is None else share
        yield rows, vectors, QUANTIZERS[quantizer].quantise(vectors, slot.lengths[rows], bits, part, rng)


def unsent_entries(
    vectors: Float[Tensor, "k d"],
    lengths: Int[Tensor, " k"],
    *,
    bits: Bits = 4,
    access: DigitalAccess = "orthogonal",
    quantizer: QuantizerName = "uniform",
    share: TopShare = None,
    entropy: Entropy = False,
) -> Float[Tensor, "k d"]:
    """What a biased quantiser leaves out of some devices' vectors, a function of each vector alone.

    lengths: entries of each vector, zeros follow. Options as in `send_quantised`. Zeros for an unbiased quantiser,
    whose rounding errors are noise, which no device stores.
    """
    row, part = QUANTIZERS[quantizer], DEFAULT_SHARE if share is None else share
    if row.unbiased:
        return torch.zeros_like(vectors)
    return vectors - row.quantise(vectors, lengths, bits, part, torch.Generator()).values  # which draw nothing


def slot_bits(
    link: Uplink, slot: SlotPlan, t: int, bits: int, quantizer: str, share: float | None, entropy: bool
) -> Float[Tensor, " k"]:
    """The bits of each stream's vector. With `entropy` the vectors are quantised once more to see their codes."""
    part = DEFAULT_SHARE if share is None else share
    num_bits = [QUANTIZERS[quantizer].num_bits(int(length), bits, part) for length in slot.lengths]
    fixed = torch.tensor(num_bits, dtype=torch.float64)
    if entropy:
        for rows, _, sent in quantise_slot(link, slot, t, bits, quantizer, share):
            fixed[rows] = coded_bits(sent, fixed[rows])
    return fixed


def with_fastest_pilots(link: Uplink, t: int, bits: Float[Tensor, " K"], access: DigitalAccess) -> Uplink:
    """The link with the derived number of pilots with which the round is the shortest; else as it is.

    In a block only the devices of a group send pilots. More pilots cost uses and fewer cost rate, so that the first
    number of PILOTS after which the round is longer is the best of them; OFDMA is judged with all devices at once.
    """
    if not link.estimation.derived:
        return link
    length = link.block_uses
    senders = min(len(link.samples), len(link.network.gain) * link.network.antennas) if access == "spatial" else 1
    everyone = (bits > 0).nonzero().flatten()
    best, shortest = link, math.inf
    for pilots in PILOTS:
        if 2 * senders * pilots > length or not len(everyone):
            break
        estimation = replace(link.estimation, pilots=pilots)
        each = replace(link, estimation=estimation, coherence_symbols=length - senders * pilots)
        time = ofdma_airtime(each, t, bits, [everyone]) if access == "ofdma" else airtime(each, t, bits, access)
        if time.uses + time.pilots >= shortest:
            break
        best, shortest = each, time.uses + time.pilots
    return best


def airtime(link: Uplink, t: int, bits: Float[Tensor, " K"], access: DigitalAccess) -> Airtime:
    """The channel uses of all devices' bits.

    Spatial access takes groups of similar gain, of the fastest size, one group after another. OFDMA takes all devices
    at once, which needs the fewest uses for data; smaller groups where pilots take more than PILOT_SHARE of them; or
    one device after another, so that it is never slower than orthogonal access.
    """
    order = link.network.gain.amax(0).argsort(descending=True)
    order = order[bits[order] > 0]
    limits = {"orthogonal": 1, "spatial": len(link.network.gain) * link.network.antennas, "ofdma": len(order)}
    largest = min(len(order), limits[access])
    sizes = [1 << power for power in range(largest.bit_length())] if largest else []
    if access == "ofdma" and largest:
        candidates = [ofdma_airtime(link, t, bits, [order]), group_airtime(link, t, bits, list(torch.split(order, 1)))]
        if candidates[0].pilots > PILOT_SHARE * candidates[0].uses:
            candidates += [ofdma_airtime(link, t, bits, list(torch.split(order, size))) for size in sizes[1:]]
    else:
        candidates = [group_airtime(link, t, bits, list(torch.split(order, size))) for size in sizes]
    zero = torch.zeros_like(bits)
    return min(candidates, key=lambda airtime: airtime.uses + airtime.pilots, default=Airtime(zero, 0.0, 0, zero))


def group_airtime(link: Uplink, t: int, bits: Float[Tensor, " K"], groups: list[Int[Tensor, " _G"]]) -> Airtime:
    """The airtime of groups that send one after another: uses, pilots, blocks.

    A group lasts as long as its slowest device; the others wait in silence. Every device of a group sends a pilot in
    every coherence block of the group.
    """
    rate = rates_of(link, t, groups)
    device_uses = torch.where(bits > 0, bits / rate.clamp_min(1e-12), 0.0)
    uses, pilots, blocks = 0.0, 0, torch.zeros_like(bits)
    for group in groups:
        group_uses = float(device_uses[group].max())
        group_blocks = math.ceil(group_uses / link.coherence_symbols)
        uses, pilots = uses + group_uses, pilots + group_blocks * len(group) * link.estimation.uses
        blocks[group] = group_blocks
    return Airtime(device_uses, uses, pilots, blocks)


def ofdma_airtime(link: Uplink, t: int, bits: Float[Tensor, " K"], groups: list[Int[Tensor, " _G"]]) -> Airtime:
    """The airtime of groups that send one after another, the devices of a group at once on parts of the band.

    A device puts its full power on its part, a share a of the band, and has a log2(1 + SNR / a) bits a use, with the
    gap to capacity. The shares let all devices of a group end at the same time, the shortest one for which they fill
    the band: with a smaller share of one device another would end later. Shares are not rounded to subcarriers. Every
    device sends during all uses of its group, and a pilot in every coherence block that its part of the band meets.
    """
    group_uses, shares = shared_band(link, SingleDeviceSnr.estimate(link, t), bits, groups)
    device_uses, blocks = torch.zeros_like(bits), torch.zeros_like(bits)
    for uses, group in zip(group_uses.tolist(), groups, strict=True):
        # Parts of the band lie side by side; a device meets the groups of subcarriers that its part touches.
        ends = (shares[group].cumsum(0) * link.subcarrier_groups).clamp(max=link.subcarrier_groups)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        touched = ((ends - 1e-6).ceil() - (starts + 1e-6).floor()).clamp_min(1.0)
        coherence_times = math.ceil(uses / (link.coherence_symbols * link.subcarrier_groups))
        blocks[group] = (touched * coherence_times).clamp(max=math.ceil(uses / link.coherence_symbols))
        device_uses[group] = uses
    return Airtime(device_uses, float(group_uses.sum()), int(blocks.sum()) * link.estimation.uses, blocks)


def shared_band(
    link: Uplink, snr: "SingleDeviceSnr", bits: Float[Tensor, " K"], groups: list[Int[Tensor, " _G"]]
) -> tuple[Float[Tensor, " groups"], Float[Tensor, " K"]]:
    """The uses of the band after which the devices of each group have sent their bits, and the devices' shares.

    The uses are found between those of the slowest device alone and those of all one after another, which is always
    enough: a device that has the band for a share of the time has no more bits than with this share of the band all
    the time, at full power. To a relative error below 1e-6, on the side that is enough.
    """
    group_of = torch.zeros(len(bits), dtype=torch.long)
    for number, group in enumerate(groups):
        group_of[group] = number
    alone = bits / efficiency(link, snr.ratio(torch.ones_like(bits))).clamp_min(1e-12)
    low = torch.stack([alone[group].max() for group in groups])
    high = torch.stack([alone[group].sum() for group in groups])
    points = torch.linspace(0, 1, SECTIONS + 1, dtype=torch.float64)[1:, None]
    for _ in range(SECTION_STEPS):
        uses = low + points * (high - low)
        shares = smallest_shares(link, snr, bits / uses[:, group_of].clamp_min(1e-300))
        total = torch.zeros_like(uses).index_add_(1, group_of, torch.where(bits > 0, shares, 0.0))
        first = (total[:-1] > 1).sum(0)  # the last point is enough already
        high = uses[first, torch.arange(len(groups))]
        low = torch.where(first > 0, uses[(first - 1).clamp_min(0), torch.arange(len(groups))], low)
    return high, smallest_shares(link, snr, bits / high[group_of].clamp_min(1e-300))


def smallest_shares(link: Uplink, snr: "SingleDeviceSnr", rate: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
    """The smallest share of the band with which each device has a rate, in bits per use of the whole band; at most 1.

    A device's rate increases with its share, because the power that it puts on the band stays the same.
    """
    low, high = torch.zeros_like(rate), torch.ones_like(rate)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = middle * efficiency(link, snr.ratio(middle)) >= rate
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


@dataclass(frozen=True)
class SingleDeviceSnr:
    """What gives the SNR of devices that each have a part of the band to themselves, with maximum-ratio receivers.

    power: P_k sum |h_mk|^2 over antennas whose estimates are equally good, in each block; 0 at antennas that do not
    serve the device. error: P_k times the variance of these antennas' channel estimates. noise: power over the whole
    band at each antenna, interference included, or at each combination that whitens it.
    """

    power: Float[Tensor, "B A K"]
    error: Float[Tensor, "b A K"]
    noise: float

    @classmethod
    def estimate(cls, link: Uplink, t: int) -> "SingleDeviceSnr":
        """The devices in the first blocks of a round, from their channel estimates."""
        h_est, variance = rate_channels(link, t)
        stations, per_station = len(link.network.gain), link.network.antennas
        power, error = h_est.abs().square() * link.power_limit, variance * link.power_limit
        error = error[None] if error.dim() == 2 else error
        if link.topology == "two_hop":
            station_of = torch.arange(stations).repeat_interleave(per_station)
            power = torch.where(station_of[:, None] == link.task_of, power, 0.0)
        if link.interference is None:  # all antennas of a station are then alike
            power = power.reshape(len(power), stations, per_station, -1).sum(2)
            error = error[:, ::per_station]
        return cls(power, error, link.assumed_noise)

    def ratio(self, share: Float[Tensor, "*S K"]) -> Float[Tensor, "B *S K"]:
        """The SNR on a share of the band: the noise shrinks with the share, the power and the channel errors do not."""
        shape = (*[1] * (share.dim() - 1), share.shape[-1])
        least = 1e-15 * float(self.power.amax().clamp_min(1e-300))
        total = torch.zeros(len(self.power), *share.shape, dtype=self.power.dtype)
        for power, error in zip(self.power.unbind(1), self.error.unbind(1), strict=True):
            floor = (share * self.noise + error.reshape(-1, *shape)).clamp_min(least)
            total += power.reshape(-1, *shape) / floor
        return total


def rates_of(link: Uplink, t: int, groups: list[Int[Tensor, " _G"]]) -> Float[Tensor, " K"]:
    """Bits a channel use of each device while its group sends, the mean over blocks, with linear MMSE receivers.

    In two_hop a device is received by its task's edge, otherwise by all antennas together.
    """
    h_est, variance = rate_channels(link, t)
    per_station = link.network.antennas
    rates = torch.zeros(len(link.samples), dtype=torch.float64)
    for group in groups:
        stations = torch.unique(link.task_of[group]).tolist() if link.topology == "two_hop" else [None]
        for station in stations:
            antennas = slice(None) if station is None else slice(station * per_station, (station + 1) * per_station)
            ratio = sinr(
                h_est[:, antennas][..., group],
                variance[..., antennas, :][..., group],
                link.power_limit[group],
                link.assumed_noise,
            )
            served = torch.ones(len(group), dtype=torch.bool) if station is None else link.task_of[group] == station
            rates[group[served]] = efficiency(link, ratio)[served]
    return rates


def rate_blocks(link: Uplink) -> int:
    """The number of coherence blocks over which rates are averaged: every group of subcarriers equally often."""
    return -(-BLOCKS // link.subcarrier_groups) * link.subcarrier_groups


def rate_channels(link: Uplink, t: int) -> tuple[Complex[Tensor, "B M K"], Float[Tensor, "*B M K"]]:
    """Estimates of the channels of a round's first blocks, and their errors' variances, with interference whitened."""
    blocks = rate_blocks(link)
    channels = link.whiten(t, blocks, *link.estimates(t, range(blocks)))
    h_est, variance = channels.h_est, channels.csi_variance
    return h_est, variance if variance.dim() == 3 else variance.expand(h_est.shape[1], -1)


def efficiency(link: Uplink, ratio: Float[Tensor, "B *G"]) -> Float[Tensor, "*G"]:
    """Bits a use, the mean over blocks, with the distortion of clipping as noise and repetition after an outage."""
    if link.impairments.clipping is not None:
        gain, left = clipped_statistics(link.impairments.clipping, link.impairments.smoothness)
        ratio = 1 / (1 / ratio.clamp_min(1e-12) + (left - gain**2) / gain**2)
    return (1 - link.impairments.outage) * resources.bits_per_use(ratio).mean(0)


def sinr(
    h: Complex[Tensor, "B M G"], variance: Float[Tensor, "*B M G"], power: Float[Tensor, " G"], noise: float
) -> Float[Tensor, "B G"]:
    """The SINR of linear MMSE receivers for channel estimates h, whose errors count as noise of the same power.

    x = P_k h_k^H C^-1 h_k with C the covariance of the received signal; SINR = x / (1 - x).
    """
    scaled = h * power.sqrt()
    C = scaled @ scaled.mH
    floor = noise + variance @ power
    C.diagonal(dim1=-2, dim2=-1).add_(floor.clamp_min(1e-15 * float(scaled.abs().square().amax())))
    x = (scaled.conj() * torch.linalg.solve(C, scaled)).real.sum(1).clamp(0.0, 1 - 1e-12)
    ratio: Tensor = x / (1 - x)
    return ratio
