"""Correlated symbols: their error, the receiver gain that corrects it, and the estimate of the correlation.

Gradients of different devices point in similar directions, so their symbols are correlated: E[x_j conj(x_k)] =
R_jk sqrt(p_j p_k), with R real and of unit diagonal, one correlation within a task and one between tasks. An error
vector e then costs e^H R e, and the shrinkage of a design for R = I adds up coherently.
"""

from dataclasses import astuple, dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.impairments import UNDISTORTED, Distortion
from airpfed.air.problem import Transceiver, TransceiverProblem, disturbance, gains

MAX_CORRELATION = 0.99
"""Upper limit of an estimate, so that R stays positive definite and no claim vanishes by cancellation."""

ROUNDING = 1e-12
"""Share of the incoherent power below which a coherent sum v R v^H is rounding, as for v in the null space of R."""

PAIRS_AT_ONCE = 1 << 22
"""Pairs of devices whose correlations `SampleCorrelation` has in memory at once, 32 MB."""


@dataclass(frozen=True)
class Correlation:
    """The correlation of two devices' symbols, for devices of one task and for devices of different tasks.

    R is positive semidefinite for 0 <= between_tasks <= within_task <= 1: a symbol is a part common to all devices, a
    part common to a task, and a part of the device.
    """

    within_task: float
    between_tasks: float


INDEPENDENT = Correlation(0.0, 0.0)


@dataclass(frozen=True)
class CorrelatedPairs:
    """Pairs of devices whose symbols correlate at the receivers, as labels, because a K x K matrix may not fit.

    cell: label of the devices of one task that share scrambling signs; they correlate by rho_w. sequence: label of all
    devices that share scrambling signs; those of different cells correlate by rho_x. A cell lies in one sequence.
    """

    cell: Int[Tensor, " K"]
    sequence: Int[Tensor, " K"]

    def times_within(self, v: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """Multiply v by the matrix that is 1 for two different devices of one cell."""
        return sum_by_label(v, self.cell) - v

    def times_between(self, v: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """Multiply v by the matrix that is 1 for two devices of one sequence and of different cells."""
        return sum_by_label(v, self.sequence) - sum_by_label(v, self.cell)


@dataclass(frozen=True)
class CorrelationOperator:
    """R of a slot's symbols as a product with vectors, at a cost of K; `correlation_matrix` is its specification."""

    correlation: Correlation
    pairs: CorrelatedPairs

    def times(self, v: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """Multiply v by R."""
        within, between = self.correlation.within_task, self.correlation.between_tasks
        return v + within * self.pairs.times_within(v) + between * self.pairs.times_between(v)

    def raised(self, power: int) -> "CorrelationOperator":
        """The operator of R with every correlation raised to a power."""
        rho = self.correlation
        return replace(self, correlation=Correlation(rho.within_task**power, rho.between_tasks**power))


@dataclass(frozen=True)
class SampleCorrelation:
    """R of symbols whose entries are known, as a product with vectors; R itself need not fit into memory.

    sample: some entries of each device, rows of norm 1, or 0 for a silent device. sequence: label of the devices that
    share scrambling signs; others do not correlate. power: of every correlation.
    """

    sample: Float[Tensor, "K n"]
    sequence: Int[Tensor, " K"]
    power: int = 1

    def times(self, v: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """Multiply v by R."""
        products = []
        for rows in torch.split(torch.arange(len(self.sample)), max(1, PAIRS_AT_ONCE // len(self.sample))):
            R = (self.sample @ self.sample[rows].T) ** self.power
            R = torch.where(self.sequence[:, None] == self.sequence[rows], R, 0.0)
            products.append(v @ R)
        return torch.cat(products, -1)

    def raised(self, power: int) -> "SampleCorrelation":
        """R with every correlation raised to a power."""
        return replace(self, power=self.power * power)


@dataclass(frozen=True)
class CellCorrelation:
    """R with one correlation for each pair of cells, as a product with vectors.

    value: (C, C), of two different devices of these cells, so that the diagonal of a device alone has no meaning. cell:
    of each device, that of its task in the slot (`CorrelatedPairs`) or one of its own.
    """

    value: Float[Tensor, "C C"]
    cell: Int[Tensor, " K"]

    def times(self, v: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """Multiply v by R."""
        pooled = v.new_zeros(*v.shape[:-1], len(self.value)).index_add(-1, self.cell, v)
        return (pooled @ self.value)[..., self.cell] + v * (1 - self.value.diagonal()[self.cell])

    def raised(self, power: int) -> "CellCorrelation":
        """R with every correlation raised to a power."""
        return replace(self, value=self.value**power)


SymbolCorrelation = CorrelationOperator | SampleCorrelation | CellCorrelation | Float[Tensor, "... K K"]
"""R as an operator, or as a matrix: one for all blocks, or one a block."""


def sum_by_label(v: Float[Tensor, "*S K"], label: Int[Tensor, " K"]) -> Float[Tensor, "*S K"]:
    """Replace each entry by the sum of the entries with the same label."""
    sums = v.new_zeros(*v.shape[:-1], int(label.max()) + 1 if len(label) else 0)
    pooled: Tensor = sums.index_add(-1, label, v)[..., label]
    return pooled


@dataclass(frozen=True)
class PowerTerms:
    """The mean power after a receiver as incoherent + rho_w within_task + rho_x between_tasks, by block and target.

    The unit is the squared unit of the target's sum. The last two terms are negative for gains of opposite signs.
    """

    incoherent: Float[Tensor, "B T"]
    within_task: Float[Tensor, "B T"]
    between_tasks: Float[Tensor, "B T"]


@dataclass(frozen=True)
class NormalEquations:
    """Sums of a weighted least-squares fit of y = rho_w w + rho_x x, with y the received power minus `incoherent`.

    The sums are dimensionless. They measure information: 1 is that of an estimate with a standard deviation of 1. The
    `pure` sums are over equations with x = 0 (slots of one task, or scrambled slots), the others over the remaining
    equations.
    """

    pure_ww: float = 0.0
    pure_wy: float = 0.0
    ww: float = 0.0
    wx: float = 0.0
    xx: float = 0.0
    wy: float = 0.0
    xy: float = 0.0

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """Add the sums of both."""
        return discounted_sum(self, other, keep=1.0)


def correlated_pairs(task_of: Int[Tensor, " K"], target_of: Int[Tensor, " K"], scrambled: bool) -> CorrelatedPairs:
    """The pairs of a slot's streams that correlate. target_of: the target of each stream.

    scrambled: the devices of each target share a random sign per use, so that products of different targets' symbols
    have zero mean.
    """
    sequence = target_of if scrambled else torch.zeros_like(target_of)
    cell = torch.unique(torch.stack([task_of, sequence]), dim=1, return_inverse=True)[1]
    return CorrelatedPairs(cell, sequence)


def correlation_matrix(
    correlation: Correlation, task_of: Int[Tensor, " K"], target_of: Int[Tensor, " K"], scrambled: bool
) -> Float[Tensor, "K K"]:
    """R of a slot's symbols at its receivers, after unscrambling; arguments as in `correlated_pairs`."""
    same_task = task_of[:, None] == task_of[None, :]
    same_signs = (target_of[:, None] == target_of[None, :]) | torch.tensor(not scrambled, device=target_of.device)
    identity = torch.eye(len(task_of), dtype=torch.float64, device=task_of.device)
    within, between = (same_task & same_signs).double() - identity, (~same_task & same_signs).double()
    return identity + correlation.within_task * within + correlation.between_tasks * between


def claimed_mse(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: SymbolCorrelation,
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion = UNDISTORTED,
) -> Float[Tensor, "B T"]:
    """The MSE per real entry that receivers expect of symbols of correlation R and powers p.

    sum_jk e_ij conj(e_ik) R_jk sqrt(p_ij p_ik) + (sigma2 + sum_j csi_j p_ij |b_j|^2) ||m_i||^2 with e_i = gains_i -
    w_i, or Re(e) for real symbols. CSI errors are independent between devices, so that their term is independent of R.
    A distortion multiplies the gains by E xi and scatters some power of every device.

    symbol_power: p_ik, the mean over target i's entries, or p_k.
    """
    return mismatch_error(problem, transceiver, R, symbol_power, distortion) + incoherent_noise(
        problem, transceiver, symbol_power, distortion
    )


def mismatch_error(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: SymbolCorrelation,
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion,
) -> Float[Tensor, "B T"]:
    """The first term of `claimed_mse`: the error of gains that differ from the weights, and `fluctuation_error`."""
    v = distortion.mean_gains(gains(problem.h, transceiver))
    error = coherent_power((v - problem.weights) * symbol_power.sqrt(), R, problem.real)
    return error + fluctuation_error(problem, transceiver, R, symbol_power, distortion)


def fluctuation_error(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: SymbolCorrelation,
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion,
) -> Float[Tensor, "B T"]:
    """The errors that grow with the power of the sum: of a change within a block, of the ADC, and of amplifiers."""
    error = torch.zeros(len(problem.h), len(problem.weights), dtype=torch.float64, device=problem.h.device)
    if bool(distortion.spread.any()):
        v = distortion.mean_gains(gains(problem.h, transceiver)) * symbol_power.sqrt()
        error = error + distortion.spread * coherent_power(v, R, problem.real)
    if distortion.adc:
        error = error + converter_noise(problem, transceiver, R, symbol_power, distortion)
    if distortion.by_order is not None:
        error = error + correlated_distortion(problem, transceiver, R, symbol_power, distortion).sum(-1)
    return error


def correlated_distortion(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: SymbolCorrelation,
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion,
) -> Float[Tensor, "B T orders"]:
    """What the distortions of several amplifiers add up to beyond the sum of their powers, by order n = 1, 2, ...

    The distortions of order n of two Gaussian signals of correlation rho correlate by rho |rho|^2n (Blachman 1968).
    Returned are the cross terms v_j conj(v_k) rho^(2n+1) of all pairs of devices, per normalised entry, with v the
    amplitude of the distortion after the receiver. Single powers are part of `Distortion.scattered_power`.
    """
    assert distortion.by_order is not None, "amplifiers distort"
    v = gains(problem.h, transceiver) * symbol_power.sqrt()
    orders = []
    for n, deviation in enumerate(distortion.by_order.unbind(-1), start=1):
        parts, power = _real_parts(v * deviation[:, None], problem.real), 2 * n + 1
        raised = R**power if isinstance(R, Tensor) else R.raised(power)
        orders.append((1 + distortion.spread) * ((_times(parts, raised) - parts) * parts).sum((0, -1)))
    return torch.stack(orders, -1)


def converter_noise(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: SymbolCorrelation,
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion,
) -> Float[Tensor, "B T"]:
    """The part of the ADC's noise that is due to correlated symbols, which add up at the antennas.

    adc sum_a |m_ia|^2 (v_a R v_a^H - v_a v_a^H) with v_ak = E xi_k h_ak b_k sqrt(p_ik); the part of independent symbols
    is one of `problem.csi_variance`. Real symbols meet half of it.
    """
    arriving = distortion.mean * transceiver.transmit_factors
    at_antenna = (problem.h * arriving[:, None, :])[:, None] * symbol_power.sqrt()[..., None, :]  # (B, T, M, K)
    parts = torch.stack([at_antenna.real, at_antenna.imag])
    pairs = ((_times(parts, R) - parts) * parts).sum((0, -1)) * (1 + distortion.spread)[:, :, None]
    half = 0.5 if problem.real else 1.0
    noise: Tensor = half * distortion.adc * (pairs * transceiver.receiver.abs().square().mT).sum(-1)
    return noise


def incoherent_noise(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion,
) -> Float[Tensor, "B T"]:
    """The second term of `claimed_mse`, independent of R: receiver noise, CSI error, and scattering of distortions."""
    v = gains(problem.h, transceiver) * symbol_power.sqrt()
    arriving = distortion.power[:, None, :] * symbol_power
    return disturbance(problem, transceiver, arriving) + distortion.scattered_power(v, problem.real).sum(-1)


def error_products(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    correlation: float,
    target_of: Int[Tensor, " K"],
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion,
) -> Float[Tensor, "B T T"]:
    """The mean products of two receivers' errors for symbols that correlate between targets; the diagonal is 0.

    Two products survive the scrambling of targets: the product of the two desired parts, which carry no sign, and the
    product of target j's streams at receiver i and target i's streams at receiver j, which carry the same sign.
    symbol_power: see `claimed_mse`.
    """
    root, targets = symbol_power.sqrt(), len(problem.weights)
    membership = (target_of == torch.arange(targets, device=target_of.device)[:, None]).to(problem.h.dtype)
    v = distortion.mean_gains(gains(problem.h, transceiver)) * root
    by_target = v @ membership.T  # (B, i, j): the gain of target j's streams at receiver i
    ideal = (problem.weights * root).to(v.dtype) @ membership.T
    spread, desired = distortion.spread[:, :, None], (by_target - ideal).diagonal(dim1=1, dim2=2)
    received = by_target.diagonal(dim1=1, dim2=2)
    products = [
        error[:, :, None] * error[:, None, :] + spread * (signal[:, :, None] * signal[:, None, :])
        for error, signal in ((desired.real, received.real), (desired.imag, received.imag))
    ]
    mutual = [(1 + spread) * part * part.mT for part in (by_target.real, by_target.imag)]
    parts = slice(0, 1) if problem.real else slice(0, 2)
    total = torch.stack([*products[parts], *mutual[parts]]).sum(0)
    return correlation * total * ~torch.eye(targets, dtype=torch.bool, device=total.device)


def scale_receivers(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: SymbolCorrelation,
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion = UNDISTORTED,
) -> Transceiver:
    """Multiply each receiver by the real scalar of least `claimed_mse`; arguments as there.

    gamma_i = Re(v R w^T) / (v R v^H + noise_i) with v_ik = E xi gain_ik sqrt(p_ik), or Re(v) for real symbols, and w_ik
    scaled likewise. A receiver with zero gains stays. The scalar corrects the shrinkage of a design that assumes R = I;
    it would bias an unbiased design.
    """
    root = symbol_power.sqrt()
    v, w = distortion.mean_gains(gains(problem.h, transceiver)) * root, problem.weights * root
    coherent = coherent_power(v, R, problem.real) + fluctuation_error(problem, transceiver, R, symbol_power, distortion)
    power = coherent + incoherent_noise(problem, transceiver, symbol_power, distortion)
    incoherent = _real_parts(v, problem.real).square().sum((0, -1))
    gamma = torch.where(power > ROUNDING * incoherent, (_times(v.real, R) * w).sum(-1) / power, 1.0)
    return Transceiver(transceiver.receiver * gamma[:, None, :], transceiver.transmit_factors, transceiver.iterations)


def power_terms(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    pairs: CorrelatedPairs,
    symbol_power: Float[Tensor, "... K"],
    distortion: Distortion = UNDISTORTED,
    noise: Float[Tensor, "B T"] | None = None,
) -> PowerTerms:
    """The power E_i = v_i R v_i^H + noise_i that each receiver expects, as a linear function of rho_w and rho_x.

    It depends on what receivers know: the estimated gains, noise, the statistics of CSI errors and distortions, and
    the powers of the symbols. noise: the result of `incoherent_noise`, if the caller has it.
    """
    noise = incoherent_noise(problem, transceiver, symbol_power, distortion) if noise is None else noise
    v = distortion.mean_gains(gains(problem.h, transceiver)) * symbol_power.sqrt()
    parts, spread = _real_parts(v, problem.real), 1 + distortion.spread
    incoherent = spread * parts.square().sum((0, -1)) + noise
    within, between = (
        spread * (times(parts) * parts).sum((0, -1)) for times in (pairs.times_within, pairs.times_between)
    )
    if distortion.adc:
        for rho, term in ((Correlation(1.0, 0.0), within), (Correlation(0.0, 1.0), between)):
            term += converter_noise(problem, transceiver, CorrelationOperator(rho, pairs), symbol_power, distortion)
    return PowerTerms(incoherent, within, between)


def expected_power(terms: PowerTerms, correlation: Correlation) -> Float[Tensor, "B T"]:
    """The mean square of the real entries that each receiver expects, before denormalising."""
    level = terms.incoherent + correlation.within_task * terms.within_task
    return level + correlation.between_tasks * terms.between_tasks


def normal_equations(
    terms: PowerTerms,
    power: Float[Tensor, "B T"],
    entries: Float[Tensor, "B T"],
    assumed_correlation: Correlation = INDEPENDENT,
) -> NormalEquations:
    """The normal equations of rho, with one equation per block and target, weighted by its inverse variance.

    power: mean square of the real entries received for target i in the block, before denormalising. entries: their
    number n. The mean of n squares has the variance 2 E^2 / n for Gaussian symbols. E is taken at
    `assumed_correlation`, the last estimate: with E from `power` itself, weak realisations would get more weight than
    strong ones and bias the estimate downwards.
    """
    level = expected_power(terms, assumed_correlation)
    usable = (level > 0) & (entries > 0) & power.isfinite()
    weight = torch.where(usable, (entries / 2).sqrt() / level, 0.0)
    w, x = (weight * term for term in (terms.within_task, terms.between_tasks))
    y = weight * torch.where(usable, power - terms.incoherent, 0.0)
    pure = terms.between_tasks == 0
    pure_sums = [(w * other)[pure].sum() for other in (w, y)]
    mixed_sums = [(a * b)[~pure].sum() for a, b in ((w, w), (w, x), (x, x), (w, y), (x, y))]
    return NormalEquations(*torch.stack(pure_sums + mixed_sums).tolist())


def estimate_correlation(equations: NormalEquations) -> Correlation:
    """Estimate rho_w from the pure equations, then rho_x from the others given rho_w.

    Each estimate is limited to [0, MAX_CORRELATION]. If rho_x is then not below rho_w, which is always so without a
    pure equation, one value for both is fitted to all equations. A task of one device, zero gains, and an empty sum
    give 0.
    """
    within = _ratio(equations.pure_wy, equations.pure_ww)
    between = _ratio(equations.xy - within * equations.wx, equations.xx)
    if between < within:
        return Correlation(within, between)
    common = _ratio(
        equations.pure_wy + equations.wy + equations.xy,
        equations.pure_ww + equations.ww + 2 * equations.wx + equations.xx,
    )
    return Correlation(common, common)


def discounted_sum(old: NormalEquations, new: NormalEquations, keep: float = 0.8) -> NormalEquations:
    """Compute keep * old + new, because the correlation of gradients changes from round to round."""
    return NormalEquations(*(keep * a + b for a, b in zip(astuple(old), astuple(new), strict=True)))


def _ratio(product: float, square: float) -> float:
    """A correlation from its sums, in [0, MAX_CORRELATION]. The added 1 keeps rounding errors from deciding it."""
    return min(max(product / (square + 1.0), 0.0), MAX_CORRELATION)


def _real_parts(v: Complex[Tensor, "B T K"], real: bool) -> Float[Tensor, "_ B T K"]:
    """The parts of complex gains that reach the real entries: with real symbols the real part alone."""
    return v.real[None] if real else torch.stack([v.real, v.imag])


def _times(v: Float[Tensor, "*S K"], R: SymbolCorrelation) -> Float[Tensor, "*S K"]:
    """Multiply v by R."""
    return v @ R if isinstance(R, Tensor) else R.times(v)


def coherent_power(v: Complex[Tensor, "B T K"], R: SymbolCorrelation, real: bool) -> Float[Tensor, "B T"]:
    """Compute v_i R v_i^H; with R real and symmetric, the real and the imaginary parts add up without a cross term."""
    parts = _real_parts(v, real)
    return (_times(parts, R) * parts).sum((0, -1))
