"""Correlated symbols: what they cost, the gain that answers them, and how a receiver learns of them from its own power.

Gradients of devices point alike, so symbols are not i.i.d.: E[x_j conj(x_k)] = R_jk sqrt(p_j p_k), R real with unit
diagonal, one correlation within a task and one across tasks. An error e then costs e^H R e, and the shrinkage of a
design made for R = I adds up coherently instead of averaging out.
"""

from dataclasses import astuple, dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.impairments import NONE, Impairments
from airpfed.air.problem import Transceiver, TransceiverProblem, disturbance, gains

LARGEST = 0.99
"""Cap on an estimated correlation: R stays positive definite, so no claim can vanish by cancellation."""

ROUNDING = 1e-12
"""Share of the incoherent power below which a coherent sum is rounding: v R v^H of a v in the null space of R."""


@dataclass(frozen=True)
class Correlation:
    """Correlation of two devices' symbols of one task (`within`) and of different tasks (`cross`).

    R is positive semidefinite for 0 <= cross <= within <= 1: a part common to all, one common to a task, one's own.
    """

    within: float
    cross: float


INDEPENDENT = Correlation(0.0, 0.0)


@dataclass(frozen=True)
class Pairs:
    """Which two different devices' symbols correlate at the receivers, as labels: no K x K matrix is held.

    cell: devices of one task that are scrambled alike, which correlate by rho_w; heard: all that are scrambled alike,
    of which those of other cells correlate by rho_x. A cell lies in one `heard`.
    """

    cell: Int[Tensor, " K"]
    heard: Int[Tensor, " K"]

    def within(self, v: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """v times the matrix that is 1 for two different devices of one cell."""
        return pooled(v, self.cell) - v

    def cross(self, v: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """v times the matrix that is 1 for two devices that are heard together, of different cells."""
        return pooled(v, self.heard) - pooled(v, self.cell)


@dataclass(frozen=True)
class Related:
    """R of a slot's symbols as a product with vectors, at a cost of K instead of K^2; `matrix` is its specification."""

    correlation: Correlation
    pairs: Pairs

    def times(self, v: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """v R."""
        return v + self.correlation.within * self.pairs.within(v) + self.correlation.cross * self.pairs.cross(v)


def pooled(v: Float[Tensor, "*S K"], label: Int[Tensor, " K"]) -> Float[Tensor, "*S K"]:
    """Each entry replaced by the sum over the entries of the same label."""
    sums = v.new_zeros(*v.shape[:-1], int(label.max()) + 1 if len(label) else 0)
    found: Tensor = sums.index_add(-1, label, v)[..., label]
    return found


@dataclass(frozen=True)
class Terms:
    """Mean power that a receiver expects, alone + rho_w within + rho_x cross, by block and target.

    In the units of the target's sum squared. within and cross may be negative: gains of opposite signs.
    """

    alone: Float[Tensor, "B T"]
    within: Float[Tensor, "B T"]
    cross: Float[Tensor, "B T"]


@dataclass(frozen=True)
class NormalEquations:
    """Sums of weighted least squares over equations y = rho_w w + rho_x x, y the power in excess of `alone`.

    Dimensionless: one unit is what an estimate of standard deviation 1 knows. `pure`: equations with x = 0 only (one
    task a slot, or scrambled); the others sum over the rest.
    """

    pure_ww: float = 0.0
    pure_wy: float = 0.0
    ww: float = 0.0
    wx: float = 0.0
    xx: float = 0.0
    wy: float = 0.0
    xy: float = 0.0

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """The evidence of both."""
        return remember(self, other, keep=1.0)


def pairs(task_of: Int[Tensor, " K"], target_of: Int[Tensor, " K"], scrambled: bool) -> Pairs:
    """Which symbols correlate in a slot. target_of: which receiver wants device k.

    scrambled: the devices of each target share a random sign per use, so products across targets have zero mean.
    """
    heard = target_of if scrambled else torch.zeros_like(target_of)
    cell = torch.unique(torch.stack([task_of, heard]), dim=1, return_inverse=True)[1]
    return Pairs(cell, heard)


def matrix(
    correlation: Correlation, task_of: Int[Tensor, " K"], target_of: Int[Tensor, " K"], scrambled: bool
) -> Float[Tensor, "K K"]:
    """R of a slot's symbols as its receivers see them, after unscrambling; arguments as in `pairs`."""
    same = task_of[:, None] == task_of[None, :]
    heard = (target_of[:, None] == target_of[None, :]) | torch.tensor(not scrambled, device=target_of.device)
    identity = torch.eye(len(task_of), dtype=torch.float64, device=task_of.device)
    within, cross = (same & heard).double() - identity, (~same & heard).double()
    return identity + correlation.within * within + correlation.cross * cross


def claimed(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: Related | Float[Tensor, "... K K"],
    symbol_power: Float[Tensor, "... K"],
    impairments: Impairments = NONE,
) -> Float[Tensor, "B T"]:
    """MSE per real entry that receivers expect of symbols of correlation R and powers p.

    R: labels, or a matrix, for all blocks or one each. symbol_power: p_ik, mean over target i's entries, or p_k.
    sum_jk e_ij conj(e_ik) R_jk sqrt(p_ij p_ik) + (sigma2 + sum_j csi_j p_ij |b_j|^2) ||m_i||^2, e_i = gains_i - w_i;
    of real symbols Re(e) stands for e. CSI errors are independent from device to device, so their part does not know R.
    With impairments the gains are E xi of what they were, and every device scatters some power by itself.
    """
    return mismatched(problem, transceiver, R, symbol_power, impairments) + own_noise(
        problem, transceiver, symbol_power, impairments
    )


def mismatched(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: Related | Float[Tensor, "... K K"],
    symbol_power: Float[Tensor, "... K"],
    impairments: Impairments,
) -> Float[Tensor, "B T"]:
    """The first part of `claimed`: what gains that are not the weights leave of the symbols."""
    mismatch = (impairments.mean * gains(problem.h, transceiver) - problem.weights) * symbol_power.sqrt()
    return _coherent(mismatch, R, problem.real)


def own_noise(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    symbol_power: Float[Tensor, "... K"],
    impairments: Impairments,
) -> Float[Tensor, "B T"]:
    """What no other device's symbol has a part in: receiver noise, CSI error, and what impairments scatter."""
    v = gains(problem.h, transceiver) * symbol_power.sqrt()
    return disturbance(problem, transceiver, impairments.power * symbol_power) + impairments.scattered(
        v, problem.real
    ).sum(-1)


def between(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    cross: float,
    target_of: Int[Tensor, " K"],
    sent: tuple[Float[Tensor, "... K"], Impairments],
) -> Float[Tensor, "B T T"]:
    """Mean product of two receivers' errors, for symbols that correlate by `cross` between targets; diagonal 0.

    sent: symbol powers as in `claimed`, and impairments. With scrambled targets two products survive: that of the own
    errors, which carry no sign, and that of what i hears of j and j of i, which carry the same.
    """
    symbol_power, impairments = sent
    root, targets = symbol_power.sqrt(), len(problem.weights)
    own = (target_of == torch.arange(targets, device=target_of.device)[:, None]).to(problem.h.dtype)
    v = impairments.mean * gains(problem.h, transceiver) * root
    heard = v @ own.T  # (B, i, j): what receiver i hears of target j's streams
    wanted = (problem.weights * root).to(v.dtype) @ own.T
    alone = (heard - wanted).diagonal(dim1=1, dim2=2)
    products = [a[:, :, None] * b[:, None, :] for a, b in ((alone.real, alone.real), (alone.imag, alone.imag))]
    mutual = [part * part.mT for part in (heard.real, heard.imag)]
    used = slice(0, 1) if problem.real else slice(0, 2)
    total = torch.stack([*products[used], *mutual[used]]).sum(0)
    return cross * total * ~torch.eye(targets, dtype=torch.bool, device=total.device)


def scaled(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    R: Related | Float[Tensor, "... K K"],
    symbol_power: Float[Tensor, "... K"],
    impairments: Impairments = NONE,
) -> Transceiver:
    """The transceiver with each receiver times the real scalar of least `claimed`; arguments as there.

    gamma_i = Re(v R w^T) / (v R v^H + noise_i), v_ik = E xi gain_ik sqrt(p_ik), w likewise, Re(v) for v of real
    symbols. A receiver that hears nothing stays. It answers a shrinkage made for R = I; it would take away the
    unbiasedness of a design that has it.
    """
    root = symbol_power.sqrt()
    v, w = impairments.mean * gains(problem.h, transceiver) * root, problem.weights * root
    heard = _coherent(v, R, problem.real) + own_noise(problem, transceiver, symbol_power, impairments)
    incoherent = _parts(v, problem.real).square().sum((0, -1))
    gamma = torch.where(heard > ROUNDING * incoherent, (_times(v.real, R) * w).sum(-1) / heard, 1.0)
    return Transceiver(transceiver.receiver * gamma[:, None, :], transceiver.transmit, transceiver.iterations)


def terms(
    problem: TransceiverProblem,
    transceiver: Transceiver,
    correlated: Pairs,
    symbol_power: Float[Tensor, "... K"],
    impairments: Impairments = NONE,
    noise: Float[Tensor, "B T"] | None = None,
) -> Terms:
    """What each receiver expects to hear, E_i = v_i R v_i^H + noise_i, as a linear function of rho_w and rho_x.

    Only what receivers know enters: their estimates of the gains, noise, CSI and impairments' statistics, normalised
    symbol powers. noise: `own_noise`, if it is at hand.
    """
    noise = own_noise(problem, transceiver, symbol_power, impairments) if noise is None else noise
    v = impairments.mean * gains(problem.h, transceiver) * symbol_power.sqrt()
    parts = _parts(v, problem.real)
    alone = parts.square().sum((0, -1)) + noise
    within, cross = ((way(parts) * parts).sum((0, -1)) for way in (correlated.within, correlated.cross))
    return Terms(alone, within, cross)


def evidence(
    expected: Terms,
    power: Float[Tensor, "B T"],
    entries: Float[Tensor, "B T"],
    assumed_correlation: Correlation = INDEPENDENT,
) -> NormalEquations:
    """What the received power says about rho: one equation per block and target, weighted by its inverse variance.

    power: mean square of the real entries that target i got in the block, before denormalising; entries: how many.
    The mean of n squares varies by 2 E^2 / n for Gaussian symbols, with E taken at `assumed_correlation` (the last
    estimate): taken from `power` itself, faint draws would weigh more than strong ones and pull the estimate down.
    """
    level = expected.alone + assumed_correlation.within * expected.within + assumed_correlation.cross * expected.cross
    usable = (level > 0) & (entries > 0) & power.isfinite()
    weight = torch.where(usable, (entries / 2).sqrt() / level, 0.0)
    w, x = (weight * term for term in (expected.within, expected.cross))
    y = weight * torch.where(usable, power - expected.alone, 0.0)
    pure = expected.cross == 0
    alone = [(w * other)[pure].sum() for other in (w, y)]
    mixed = [(a * b)[~pure].sum() for a, b in ((w, w), (w, x), (x, x), (w, y), (x, y))]
    return NormalEquations(*torch.stack(alone + mixed).tolist())


def estimate(known: NormalEquations) -> Correlation:
    """rho_w from pure equations, then rho_x from the others given rho_w; 0 <= rho_x <= rho_w <= LARGEST.

    Where that order would be broken, and without any pure equation, one scalar fits all equations. A device alone in
    its task, zero gains, and no evidence at all give 0.
    """
    within = _ratio(known.pure_wy, known.pure_ww)
    cross = _ratio(known.xy - within * known.wx, known.xx)
    if cross < within:
        return Correlation(within, cross)
    both = _ratio(known.pure_wy + known.wy + known.xy, known.pure_ww + known.ww + 2 * known.wx + known.xx)
    return Correlation(both, both)


def remember(old: NormalEquations, new: NormalEquations, keep: float = 0.8) -> NormalEquations:
    """Running evidence over rounds, keep * old + new: gradients turn, so what was heard long ago counts less."""
    return NormalEquations(*(keep * a + b for a, b in zip(astuple(old), astuple(new), strict=True)))


def _ratio(product: float, square: float) -> float:
    """A correlation from its sums: one unit of evidence for 0 keeps two rounding errors from deciding it."""
    return min(max(product / (square + 1.0), 0.0), LARGEST)


def _parts(v: Complex[Tensor, "B T K"], real: bool) -> Float[Tensor, "_ B T K"]:
    """What of a complex gain reaches the real entries: of real symbols the real part."""
    return v.real[None] if real else torch.stack([v.real, v.imag])


def _times(v: Float[Tensor, "*S K"], R: Related | Float[Tensor, "... K K"]) -> Float[Tensor, "*S K"]:
    """v R."""
    return R.times(v) if isinstance(R, Related) else v @ R


def _coherent(v: Complex[Tensor, "B T K"], R: Related | Float[Tensor, "... K K"], real: bool) -> Float[Tensor, "B T"]:
    """v_i R v_i^H; for real symmetric R the real and the imaginary parts add up without a cross term."""
    parts = _parts(v, real)
    return (_times(parts, R) * parts).sum((0, -1))
