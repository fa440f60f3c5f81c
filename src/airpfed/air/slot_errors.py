"""The errors of received sums by cause: one record from the signal of a segment to the record of a round."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.blockwise import by_block
from airpfed.air.correlation import NormalEquations, error_products
from airpfed.air.impairments import Distortion
from airpfed.air.problem import Transceiver
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import SlotPlan, Uplink, normalizer_groups
from airpfed.air.segments import Segment
from airpfed.air.superposition import ReceivedSignal
from airpfed.air.symbols import NormalizedGroup, entries_per_use, normalise_group, unpack_symbols, zero_tail
from airpfed.core.errors import UserError


@dataclass(frozen=True)
class SlotErrors:
    """Error energies of U sums by cause: squared errors, added up over entries; by coherence block or in total.

    claimed: the error that the receivers can compute before the round, or from the power that arrives; NaN where
    they can compute none. claimed_genie: the same with the Gram matrix of the true symbols, and the assumed noise.
    measured: the error of the round's sums.
    bias: the error of the mean over noise and scrambling. variance: the part of the error around that mean; its noise
    part uses the assumed noise. The assumed noise is `TransceiverProblem.noise`. zero_estimate_error: the error if
    nothing were sent. scale: sigma^2 times the number of entries. The last two are for a whole segment or slot.
    """

    claimed: Float[Tensor, "*B U"]
    claimed_genie: Float[Tensor, "*B U"]
    measured: Float[Tensor, "*B U"]
    bias: Float[Tensor, "*B U"]
    variance: Float[Tensor, "*B U"]
    zero_estimate_error: Float[Tensor, "*S U"]
    scale: Float[Tensor, "*R U"]

    def __truediv__(self, energy: Float[Tensor, "*S U"]) -> "SlotErrors":
        """Divide the errors by an energy, for instance by `scale` for mean-squared errors; 0 where it is 0."""
        return replace(self, **{name: torch.where(energy > 0, getattr(self, name) / energy, 0.0) for name in ERRORS})


ERRORS = tuple(field.name for field in fields(SlotErrors) if field.name != "scale")
"""The fields of `SlotErrors` that are errors."""


@dataclass(frozen=True)
class ReceivedSums:
    """The U received sums of a segment or a slot.

    joules: radiated energy of each stream. normal_equations: for each segment, the equations that its received power
    gives for the symbols' correlation.
    """

    sums: Float[Tensor, "U d"]
    errors: SlotErrors
    joules: Float[Tensor, " K"]
    normal_equations: tuple[NormalEquations, ...] = ()


def received_sums(
    link: Uplink,
    slot: SlotPlan,
    estimates: Float[Tensor, "T d"],
    *,
    variance: Float[Tensor, " T"] | None = None,
    joules: Float[Tensor, " K"] | None = None,
) -> ReceivedSums:
    """Make the sums of a slot from what its receivers estimate, and measure their errors: for a scheme of one's own.

    estimates: of each target, the sum over its streams of weight times gradient, `slot.weights @ slot.vectors[:]`.
    variance: for unbiased estimates whose receivers know their error: mean square of the error, added up over entries;
    None for estimates that the gradients determine, and that claim nothing. joules: radiated energy of each stream;
    none by default. Raises UserError if estimates have another shape.

    >>> import airpfed as ap
    >>> def half(link, slot, t):
    ...     return ap.received_sums(link, slot, 0.5 * slot.weights @ slot.vectors[:])
    >>> ap.SCHEMES.to_row("half", half).unbiased
    'no'
    """
    parts = (slot.weights[:, rows] @ slot.vectors[rows] for rows in row_chunks(*slot.vectors.shape))
    exact = sum(parts, torch.zeros(len(slot.weights), slot.vectors.shape[1], dtype=torch.float64))
    if estimates.shape != exact.shape:
        raise UserError(
            f"received_sums: estimates have the shape {tuple(estimates.shape)}; should be {tuple(exact.shape)}"
        )
    sums = slot.combining_matrix @ estimates.double()
    measured = (sums - slot.combining_matrix @ exact).square().sum(1)
    zero = torch.zeros_like(measured)
    error = None if variance is None else slot.combining_matrix.square() @ variance.double()
    zero_estimate_error, scale = slot_scales(link, slot)
    return ReceivedSums(
        sums=sums.to(slot.vectors.dtype),
        errors=SlotErrors(
            claimed=torch.full_like(zero, torch.nan) if error is None else error,
            claimed_genie=torch.full_like(zero, torch.nan) if error is None else error,
            measured=measured,
            bias=measured if error is None else zero,
            variance=zero if error is None else error,
            zero_estimate_error=zero_estimate_error,
            scale=scale,
        ),
        joules=torch.zeros(len(slot.devices), dtype=torch.float64) if joules is None else joules,
    )


def slot_scales(link: Uplink, slot: SlotPlan) -> tuple[Float[Tensor, " U"], Float[Tensor, " U"]]:
    """The fields `zero_estimate_error` and `scale` of `SlotErrors` for a whole slot."""
    groups = [
        normalise_group(slot.vectors, slot.lengths, slot.weights, None, columns)
        for columns in normalizer_groups(link, slot)
    ]
    zero = torch.zeros(len(slot.combining_matrix), dtype=torch.float64)
    return (
        sum((zero_estimate_energy(slot, group) for group in groups), zero),
        sum((sum_scale(slot, group) for group in groups), zero),
    )


def join_segments(slot: SlotPlan, segments: Sequence[ReceivedSums]) -> ReceivedSums:
    """Join the segments of a slot: sums side by side, energies added over segments and blocks."""
    errors = [segment.errors for segment in segments]
    # One sum over all blocks, because a sum of each segment's sums would be rounded in another order.
    total = {f.name: torch.cat([getattr(error, f.name) for error in errors]).sum(0) for f in fields(SlotErrors)}
    return ReceivedSums(
        sums=torch.cat([segment.sums for segment in segments], 1).to(slot.vectors.dtype),
        errors=SlotErrors(**total),
        joules=torch.stack([segment.joules for segment in segments]).sum(0),
        normal_equations=tuple(equations for segment in segments for equations in segment.normal_equations),
    )


def segment_entries(link: Uplink, segment: Segment, symbols: Complex[Tensor, "T uses"]) -> Float[Tensor, "T d"]:
    """Unpack the symbols of a segment's receivers into the real entries of each target."""
    entries = unpack_symbols(symbols, link.packing, segment.group.entries.shape[1])
    return zero_tail(entries, segment.group.num_entries)


def combine_targets(slot: SlotPlan, values: Float[Tensor, "T d"]) -> Float[Tensor, "U d"]:
    """Combine the receivers' estimates into the slot's sums; nothing is added if each sum is that of one receiver."""
    identity = slot.combining_matrix.shape[0] == slot.combining_matrix.shape[1] and bool(
        (slot.combining_matrix == torch.eye(len(slot.combining_matrix))).all()
    )
    return values if identity else slot.combining_matrix @ values


def square_sums(link: Uplink, segment: Segment, values: Float[Tensor, "U d"]) -> Float[Tensor, "B U"]:
    """The sums of squares over the entries of each coherence block."""
    norm = partial(torch.linalg.vector_norm, dim=-1)
    return by_block(norm, values, segment.block_ranges, entries_per_use(link.packing)).square()


def block_sums(link: Uplink, segment: Segment, values: Float[Tensor, "U d"]) -> Float[Tensor, "B U"]:
    """The sums over the entries of each coherence block."""
    return by_block(partial(torch.sum, dim=-1), values, segment.block_ranges, entries_per_use(link.packing))


def symbol_error(link: Uplink, segment: Segment, errors: Complex[Tensor, "T uses"]) -> Float[Tensor, "B U"]:
    """The squared errors of the slot's sums, from the errors of the received symbols."""
    scaled = segment_entries(link, segment, errors) * segment.group.scale[:, None]
    return square_sums(link, segment, combine_targets(segment.slot, scaled))


def crosstalk_error(link: Uplink, segment: Segment, crosstalk: Complex[Tensor, "T T uses"]) -> Float[Tensor, "B U"]:
    """The mean error energies of other targets' streams over the scrambling signs.

    Target j's streams at receiver i and target i's streams at receiver j carry the same sign, so that they add up
    coherently in a sum of both receivers.
    """
    combining_matrix = segment.slot.combining_matrix
    error = torch.zeros(len(segment.block_ranges), len(combining_matrix), dtype=torch.float64)
    if len(crosstalk) == 1:
        return error
    # streams_of[j][i]: the real entries of target j's streams at receiver i.
    streams_of = [segment_entries(link, segment, x) * segment.group.scale[:, None] for x in crosstalk.unbind(1)]
    for i, j in combinations(range(len(streams_of)), 2):
        affected = (combining_matrix[:, [i, j]] != 0).any(1)
        weight_i, weight_j = combining_matrix[affected, i, None], combining_matrix[affected, j, None]
        pair = weight_i * streams_of[j][i] + weight_j * streams_of[i][j]
        error[:, affected] += square_sums(link, segment, pair)
    return error


def mean_signal_error(
    link: Uplink, segment: Segment, signal: ReceivedSignal, ideal: Complex[Tensor, "T uses"]
) -> tuple[Float[Tensor, "B U"], Float[Tensor, "B U"]]:
    """The error energies of a noise-free signal: of its desired part, compared with `ideal`, and of its crosstalk."""
    return symbol_error(link, segment, signal.desired - ideal), crosstalk_error(link, segment, signal.crosstalk)


def coherent_error(
    link: Uplink, segment: Segment, transceiver: Transceiver, distortion: Distortion
) -> Float[Tensor, "B U"]:
    """The cross terms that correlated symbols add to the claimed error of a sum of several receivers' estimates.

    The receivers' errors are then correlated, so that their energies alone do not add up. 0 for a sum of one estimate.
    """
    combining_matrix, group = segment.slot.combining_matrix, segment.group
    if bool(((combining_matrix != 0).sum(1) <= 1).all()):
        return torch.zeros(len(segment.block_ranges), len(combining_matrix), dtype=torch.float64)
    scaled = combining_matrix * group.scale
    products = error_products(
        segment.problem,
        transceiver,
        segment.assumed_correlation.between_tasks,
        segment.slot.target_of,
        segment.symbol_power,
        distortion,
    )
    entries = segment.entry_share * group.num_entries
    return torch.einsum("ui,bij,uj,bi->bu", scaled, products, scaled, entries)


def sum_scale(slot: SlotPlan, group: NormalizedGroup) -> Float[Tensor, " U"]:
    """sigma^2 of each sum times its entries: the mean of its receivers' sigma_i^2, weighted by their squared weights.

    sigma_i^2 is the mean of the devices' variances weighted by w_ik^2; so is sigma^2, with the weights of the sum.
    """
    share = slot.combining_matrix.square() * slot.weights.square().sum(1)
    sigma = (share @ group.scale.square()) / share.sum(1)
    return sigma * torch.where(slot.combining_matrix != 0, group.num_entries, 0).amax(1)


def zero_estimate_energy(slot: SlotPlan, group: NormalizedGroup) -> Float[Tensor, " U"]:
    """The error energy of each sum if nothing were sent, for i.i.d. symbols."""
    energy = group.scale.square() * group.num_entries * (group.weights.square() @ group.symbol_power)
    return energy @ slot.combining_matrix.square().T
