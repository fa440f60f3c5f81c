"""The uplink's fixed parameters, and the slots of a round: senders, targets, and weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Literal

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from airpfed.air.coherence import BlockChange
from airpfed.air.grid import ResourceGrid
from airpfed.air.impairments import NONE, Impairments, impairment_factors, silence_faint_devices
from airpfed.air.interference import Interference, ReceivedChannels, covariance, whiten
from airpfed.air.mixing import Mixing
from airpfed.air.network import (
    NO_PILOTS,
    CsiError,
    Estimation,
    Network,
    aged_error,
    csi_variance,
    estimate_channels,
    pilot_error,
)
from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.air.row_chunks import Rows
from airpfed.air.symbols import Packing, uses_of
from airpfed.core.rng import complex_normals, stream
from airpfed.core.run_files import Ledger

DesignFunction = Callable[[TransceiverProblem], Transceiver]
RoundFunction = Callable[
    [
        Sequence[TransceiverProblem],
        Sequence[Int[Tensor, " _K"]],
        Sequence[float],
        Sequence[Float[Tensor, " _K"]],
        Sequence[Transceiver],
    ],
    list[Transceiver],
]
"""(problems of a round, their devices, their uses, powers of their streams' symbols, transceivers of each problem by
itself) -> transceivers that share energy.
"""
SlotFunction = Callable[["Uplink", "SlotPlan", int], Any]
"""(link, slot, round) -> `slot_errors.ReceivedSums`: how a scheme makes a slot's gradients into sums."""
UnsentFunction = Callable[[Float[Tensor, "k d"], Int[Tensor, " k"]], Float[Tensor, "k d"]]
"""(vectors, their lengths) -> what a scheme leaves out of each vector, as a device knows it from its vector alone."""
CostFunction = Callable[["Uplink", Sequence["SlotPlan"], int, int], Ledger]
"""(link, slots of the round, round, length of the s-vector) -> the ledger of a round."""
Groups = tuple[tuple[int, int], ...]
"""Columns [first, last) of a vector's normaliser groups."""
Grouping = tuple[tuple[int, ...], ...]
"""Tasks of each p-slot, in the order of transmission."""
Access = Literal["concurrent", "tdma", "auto", "superposed"]
Topology = Literal["single_cell", "joint", "two_hop"]


@dataclass(frozen=True)
class Uplink:
    """The parameters of the uplink, the same in all rounds; linear SI units.

    send: the scheme's function, which makes a slot's gradients into sums; None where `design` superposes them in the
    channel. cost: the scheme's function for the ledger of a round; None where slots of symbols are charged. design: the
    function that designs a problem's transceivers; None if nothing is superposed. batched: whether the design takes
    several problems of one target as one batch. refine: the function that shares energy among the slots of a round;
    None if every slot keeps the power limit. rescale: whether receivers are scaled to the assumed correlation. biased:
    whether the design shrinks the sums, also with perfect channel knowledge.
    correlation: the symbols' correlation that receivers assume; None if they estimate it from round to round.
    topology: `joint` and `two_hop` have one station per task, station n for task n. backhaul_bits: bits per entry of an
    edge's s-sum; None for an error-free backhaul. personal_slots: maximum number of p-slots of access `auto`.
    csi_error: share of the channels' variance that is left as estimation error; 0 if `estimation` has pilots, which
    determine it. estimation: pilots, and their age. feedback_bits: bits to which transmit factors are rounded; None for
    exact factors, which are charged as `resources.FACTOR_BITS`. change: how channels change within a block; None if
    they are constant. power_limit: P_k, watts. noise: sigma2,
    the true noise power, watts per complex symbol and antenna. samples: D_k.
    mixing: of the entries before they are sent. power_over: whether the power limit holds for the mean over each OFDM
    symbol or over a slot. noise_alpha: stability index of the noise, 2 for Gaussian noise. receive_clipping: the server
    clips received entries at so many times the deviation that it expects of them; infinite for none. interference: from
    outside the cell, beside the noise.
    shared_groups, personal_groups: columns of the normaliser groups of the s- and p-vectors. personal_rows: for each
    p-group the number of the s-group of the same kind of factor, or a number of its own; groups of one number share
    their correlation statistics. lengths: entries of each task's p-vector.
    alternating: columns of the s-vector sent in rounds 1, 2, ..., and then in the same order; empty if every round
    sends all columns. colocated: whether senders and receivers are the same machine; then nothing is recorded or
    charged. unsent: the scheme's function for what it leaves out of the gradients; None if it leaves out nothing that
    devices know of. memory_bytes: None if devices forget what was not sent; otherwise each round gives it, in memory up
    to this size and in a temporary file beyond (`air.error_memory`). tells_silence: whether each round says where every
    device was silent, for devices that keep what was not sent themselves.
    downlink_bits: bits per entry of the broadcast of the adapters; None for 32 bits. station_power: watts of a
    station's broadcast; None for a downlink like the devices' own links (`round_cost.broadcast_rates`).
    amplifier_efficiency, circuit_watts: of the devices' radios, see `resources.RadioUse`.
    """

    design: DesignFunction | None
    batched: bool
    refine: RoundFunction | None
    rescale: bool
    send: "SlotFunction | None"
    cost: "CostFunction | None"
    correlation: float | None
    topology: Topology
    backhaul_bits: int | None
    access: Access
    personal_slots: int
    packing: Packing
    normalizer: Literal["common", "per_device"]
    task_names: tuple[str, ...]
    task_of: Int[Tensor, " K"]
    samples: Float[Tensor, " K"]
    network: Network
    power_limit: Float[Tensor, " K"]
    noise: float
    csi_error: float
    impairments: Impairments
    coherence_symbols: int
    bandwidth_hz: float
    subcarriers: int
    subcarrier_groups: int
    shared_groups: Groups
    personal_groups: Groups
    personal_rows: tuple[int, ...]
    lengths: tuple[int, ...]
    seed: int
    mixing: Mixing = "none"
    power_over: Literal["symbol", "slot"] = "slot"
    noise_alpha: float = 2.0
    receive_clipping: float = inf
    biased: bool = False
    alternating: Groups = ()
    colocated: bool = False
    estimation: Estimation = NO_PILOTS
    interference: Interference | None = None
    downlink_bits: int | None = None
    station_power: float | None = None
    amplifier_efficiency: float = 0.35
    circuit_watts: float = 0.1
    unsent: "UnsentFunction | None" = None
    memory_bytes: float | None = None
    tells_silence: bool = False
    feedback_bits: int | None = None
    change: BlockChange | None = None

    @property
    def block_uses(self) -> int:
        """The channel uses of a coherence block, those of its pilots included."""
        return self.coherence_symbols + len(self.samples) * (self.estimation.pilots or 0)

    @property
    def grid(self) -> ResourceGrid:
        """The places of a round's channel uses on the OFDM symbols and subcarriers."""
        return ResourceGrid(self.coherence_symbols, self.subcarrier_groups, self.subcarriers)

    def rng(self, *names: str | int) -> torch.Generator:
        """The random generator of a name, such as ("rounding", t, slot.name): a function of seed and name alone."""
        return stream(self.seed, *names)

    @property
    def csi_share(self) -> CsiError:
        """The share of each channel's scattered variance that estimates lack when they are used.

        Pilots meet the mean power of interference.
        """
        error: CsiError = self.csi_error
        if self.estimation.pilots is not None:
            foreign = 0.0 if self.interference is None else self.interference.mean_power
            error = pilot_error(
                self.network.scattered,
                self.power_limit,
                self.noise + foreign,
                self.estimation.pilots,
                self.estimation.contamination,
            )
        elif self.estimation.age != 1:
            error = torch.full_like(self.network.scattered, self.csi_error)
        return aged_error(error, self.estimation.age)

    @property
    def csi_variance(self) -> Float[Tensor, "m K"]:
        """The variance of the channel estimates' errors: one row per antenna, or one row if all have the same."""
        variance = csi_variance(self.network, self.csi_share)
        if self.change is None:
            return variance
        return self.change.mean**2 * (variance + csi_variance(self.network, self.change.innovation))

    @property
    def is_varying(self) -> bool:
        """Whether a stream's gain changes from use to use of a block."""
        return self.impairments.rotates or self.change is not None

    @property
    def is_csi_exact(self) -> bool:
        """Whether estimates are the channels, but for the impairments."""
        if self.change is not None:
            return False
        share = self.csi_share
        return share == 0 if isinstance(share, float | int) else not bool(share.any())

    def estimates(self, t: int, blocks: range) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
        """Draw (h_est, h) of all devices and antennas in coherence blocks of round t, before the devices' impairments.

        Where channels change within a block, both are for its mean use: E r(u) times the channel at the block's centre,
        and in h an independent part of the power of e(u), drawn once for the block.
        """
        h_est, h = estimate_channels(self.network, self.csi_share, self.seed, t, blocks)
        if self.change is None:
            return h_est, h
        names = (*self.network.names, "block change", t)
        deviation = csi_variance(self.network, self.change.innovation).sqrt()
        innovation = deviation * complex_normals(self.seed, names, blocks, h.shape[1:])
        return self.change.mean * h_est, self.change.mean * (h + innovation)

    def channels(self, t: int, blocks: int) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
        """Draw (h_est, h) of all devices and antennas in the first coherence blocks of round t.

        h_est is 0 for a device that is silent in a fade; h holds the impairments of phase and outage. Interference is
        not part of them, see `received_channels`.
        """
        h_est, h = self.estimates(t, range(blocks))
        h_est = silence_faint_devices(h_est, self.network.antenna_gain, self.impairments.truncation)
        if self.impairments.phase_rad or self.impairments.outage:
            names, devices = self.network.names, len(self.samples)
            factors = impairment_factors(self.impairments, self.seed, names, t, range(blocks), devices)
            h = h * factors[:, None, :]
        return h_est, h

    def received_channels(self, t: int, blocks: int) -> ReceivedChannels:
        """Draw the channels of `channels` as receivers meet them: with interference, at antennas that whiten it."""
        return self.whiten(t, blocks, *self.channels(t, blocks))

    def whiten(
        self, t: int, blocks: int, h_est: Complex[Tensor, "B M K"], h: Complex[Tensor, "B M K"]
    ) -> ReceivedChannels:
        """The channels of the first blocks of round t, at antennas that whiten the interference if there is any."""
        channels = ReceivedChannels(h_est, h, self.csi_variance)
        if self.interference is None:
            return channels
        names = (*self.network.names, "interference", t)
        R = covariance(self.interference, self.noise, h.shape[1], self.seed, names, range(blocks))
        return whiten(self.interference, self.noise, R, channels)

    @property
    def assumed_noise(self) -> float:
        """The noise power that receivers assume at each antenna, or at each combination that whitens interference."""
        if self.interference is None or self.interference.has_covariance:
            return self.noise
        return self.noise + self.interference.mean_power


@dataclass(frozen=True)
class Updates:
    """The gradients of a round, one row per device. The row of an absent device is ignored in sums and in weights."""

    shared: Float[Tensor, "K d_s"]
    personal: Float[Tensor, "K d_p"]
    present: Bool[Tensor, " K"]


@dataclass(frozen=True)
class SlotPlan:
    """One slot of a round: its streams (rows of `vectors`), its T receivers, and the U sums that they serve.

    devices: the device of each stream. lengths: entries of each stream's vector. groups: normaliser groups.
    statistics_rows: row of the correlation statistics for each group. weights: w_ik of receiver i's target. target_of:
    the receiver whose target includes a stream. target_weight: weight of a receiver's error in the objective.
    stations: station of each receiver, None for all stations together.
    combining_matrix: the slot's sums from the receivers' estimates: the identity, but in two_hop the s-sum is the sum
    over n of D_n/D times the estimate of edge n. targets: the task of each sum, None for s.
    """

    name: str
    devices: Int[Tensor, " K"]
    vectors: Rows
    lengths: Int[Tensor, " K"]
    groups: Groups
    statistics_rows: tuple[int, ...]
    weights: Float[Tensor, "T K"]
    target_of: Int[Tensor, " K"]
    target_weight: Float[Tensor, " T"]
    stations: tuple[int | None, ...]
    combining_matrix: Float[Tensor, "U T"]
    targets: tuple[int | None, ...]


def reason_without_any_claim(link: Uplink) -> str:
    """The reason why the receivers can claim no error at all, not even with the true correlation; empty if they can.

    Bussgang's gain of an amplifier holds for Gaussian signals; gradients are Gaussian only after full mixing, and a
    device's streams in one slot add up in its amplifier.
    """
    if link.design is None:
        return ""
    if link.noise_alpha < 2:
        return "alpha-stable noise has no variance"
    if link.receive_clipping < inf:
        return "the error of clipped sums depends on the distribution of their entries"
    if link.impairments.clipping is None:
        return ""
    if link.mixing != "full":
        return 'the effect of a clipping amplifier can be predicted of Gaussian signals only, so with mixing = "full"'
    if link.packing == "real":
        return "the spectrum of an amplifier's distortion is not known for real symbols"
    if link.access == "superposed":
        return "the effect of a clipping amplifier on several streams of a device cannot be predicted"
    if link.topology == "two_hop":
        return "no law is built in for the distortions of one device's amplifier and another's at different edges"
    return ""


def reason_without_claim(link: Uplink) -> str:
    """The reason why the receivers cannot claim the error of every sum, or of the s-sum; empty if they can.

    If s-streams of different tasks share a slot with p-streams, or go to different edges, their correlation cannot be
    estimated, and the error of a biased sum depends on it.
    """
    if reason := reason_without_any_claim(link):
        return reason
    if link.design is None or link.correlation is not None or len(link.task_names) < 2 or not link.shared_groups:
        return ""
    if link.access == "superposed" and link.personal_groups:
        return "the correlation between tasks cannot be estimated where s and p share a slot"
    # Feedback of 32 bits and more leaves gains that miss their weights by less than -80 dB.
    forced = link.impairments == NONE and link.change is None and (link.feedback_bits or 32) >= 32
    if link.topology == "two_hop" and (link.biased or not forced):
        return "the correlation between tasks cannot be estimated where every edge receives its own devices"
    return ""


def schedule(link: Uplink, updates: Updates, grouping: Grouping) -> list[SlotPlan]:
    """The slots of a round in the order of transmission, with weights that renormalise over the present devices.

    grouping: tasks of each p-slot. A slot without devices or without entries is left out.
    """
    devices = updates.present.nonzero().flatten()
    if not len(devices):
        return []
    slots = [
        _shared_slot(link, updates.shared, devices),
        *(_personal_slot(link, updates.personal, devices, tasks) for tasks in grouping),
    ]
    slots = [slot for slot in slots if slot.vectors.shape[1]]
    if link.access == "superposed" and len(slots) == 2:
        return [_superposed_slot(*slots)]
    return slots


def _shared_slot(link: Uplink, shared: Float[Tensor, "K d_s"], devices: Int[Tensor, " present"]) -> SlotPlan:
    """The s-slot: one receiver with the antennas of all stations.

    In two_hop it has one receiver at each edge that has present devices.
    """
    samples, task_of = link.samples[devices], link.task_of[devices]
    tasks: Tensor = torch.unique(task_of)
    two_hop = link.topology == "two_hop"
    membership = task_of == tasks[:, None] if two_hop else torch.ones(1, len(devices), dtype=torch.bool)
    parts = samples * membership
    share = parts.sum(1) / samples.sum()
    return SlotPlan(
        name="s",
        devices=devices,
        vectors=Rows(((shared, devices),), shared.shape[1]),
        lengths=torch.full_like(devices, shared.shape[1]),
        groups=link.shared_groups,
        statistics_rows=tuple(range(len(link.shared_groups))),
        weights=parts / parts.sum(1, keepdim=True),
        target_of=membership.double().argmax(0),
        target_weight=share.square(),
        stations=tuple(tasks.tolist()) if two_hop else (None,),
        combining_matrix=share[None, :],
        targets=(None,),
    )


def _personal_slot(
    link: Uplink, personal: Float[Tensor, "K d_p"], present: Int[Tensor, " present"], tasks: Sequence[int]
) -> SlotPlan:
    """The p-slot of some tasks, with one receiver per task."""
    devices = present[torch.isin(link.task_of[present], torch.tensor(tasks))]
    membership = link.task_of[devices][None, :] == torch.tensor(tasks)[:, None]
    parts = link.samples[devices] * membership
    lengths = torch.tensor(link.lengths)[link.task_of[devices]]
    longest = int(lengths.max())
    groups = tuple((a, min(b, longest)) for a, b in link.personal_groups if a < longest)
    return SlotPlan(
        name="p" + ",".join(str(n) for n in tasks),
        devices=devices,
        vectors=Rows(((personal, devices),), min(longest, personal.shape[1])),
        lengths=lengths,
        groups=groups,
        statistics_rows=link.personal_rows[: len(groups)],
        weights=parts / parts.sum(1, keepdim=True),
        target_of=membership.double().argmax(0),
        target_weight=parts.sum(1) / link.samples[present].sum(),
        stations=tuple(None if link.topology == "single_cell" else n for n in tasks),
        combining_matrix=torch.eye(len(tasks), dtype=torch.float64),
        targets=tuple(tasks),
    )


def _superposed_slot(s: SlotPlan, p: SlotPlan) -> SlotPlan:
    """Both slots in one: every device sends its s- and its p-stream at once, and each is interference to the other.

    A device is silent on a stream once its vector has ended. The slot's groups lie between neighbouring borders of s-
    and p-groups. Targets are weighted by their entries, as in Pi.
    """
    width = max(s.vectors.shape[1], p.vectors.shape[1])
    borders = sorted({border for slot in (s, p) for group in slot.groups for border in group})
    entries = torch.stack([p.lengths[row > 0].amax() for row in p.weights]).double()
    alpha = torch.cat([s.target_weight * s.vectors.shape[1], p.target_weight * entries])
    return SlotPlan(
        name="s+" + p.name,
        devices=torch.cat([s.devices, p.devices]),
        vectors=Rows(s.vectors.parts + p.vectors.parts, width),
        lengths=torch.cat([s.lengths, p.lengths]),
        groups=tuple(pairwise(borders)),
        statistics_rows=tuple(range(len(borders) - 1)),
        weights=_block_diagonal(s.weights, p.weights),
        target_of=torch.cat([s.target_of, len(s.weights) + p.target_of]),
        target_weight=alpha / alpha.sum(),
        stations=(*s.stations, *p.stations),
        combining_matrix=_block_diagonal(s.combining_matrix, p.combining_matrix),
        targets=(*s.targets, *p.targets),
    )


def _block_diagonal(a: Float[Tensor, "S K"], b: Float[Tensor, "T L"]) -> Float[Tensor, "U J"]:
    """Two matrices as the diagonal blocks of one."""
    pad = torch.nn.functional.pad
    return torch.cat([pad(a, (0, b.shape[1])), pad(b, (a.shape[1], 0))])


def over_backhaul(link: Uplink, slot: SlotPlan) -> Bool[Tensor, " T"]:
    """The receivers whose estimates travel on to the global server: the edges' s-sums in two_hop."""
    if link.topology != "two_hop":
        return torch.zeros(len(slot.weights), dtype=torch.bool)
    is_shared = torch.tensor([task is None for task in slot.targets])
    return (slot.combining_matrix[is_shared] != 0).any(0)


def slot_uses(link: Uplink, slot: SlotPlan) -> int:
    """The channel uses of a slot: its groups, each padded to a whole symbol."""
    return sum(uses_of(stop - start, link.packing) for start, stop in normalizer_groups(link, slot))


def normalizer_groups(link: Uplink, slot: SlotPlan) -> Groups:
    """The normaliser groups of a slot; the whole vector with the common normaliser."""
    return ((0, slot.vectors.shape[1]),) if link.normalizer == "common" else slot.groups


def statistics_rows(link: Uplink, slot: SlotPlan) -> tuple[int, ...]:
    """The row of the correlation statistics for each normaliser group of a slot."""
    return (0,) if link.normalizer == "common" else slot.statistics_rows


def num_statistics_rows(link: Uplink) -> int:
    """The number of rows of the correlation statistics: one per kind of normaliser group, at least one.

    A superposed slot divides the groups further; the number then counts s-groups plus p-groups.
    """
    if link.normalizer == "common":
        return 1
    if link.access == "superposed":
        return max(1, len(link.shared_groups) + len(link.personal_groups))
    return max([1, len(link.shared_groups), *(row + 1 for row in link.personal_rows)])


def device_of_stream(devices: Int[Tensor, " K"]) -> Int[Tensor, " K"] | None:
    """`TransceiverProblem.device_of_stream` for streams of these devices: None if each device has one stream."""
    unique, index = torch.unique(devices, return_inverse=True)
    return index if len(unique) < len(devices) else None
