"""Estimators of the theory's constants, from gradients and Hessian-vector products; what is random is said of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, log, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

Z95 = 1.96
"""Standard errors on either side of a 95 % interval."""


@dataclass(frozen=True)
class Ritz:
    """What Lanczos found: largest and smallest Ritz value of each problem, and the largest's unit vector."""

    top: Float[Tensor, " B"]
    bottom: Float[Tensor, " B"]
    vector: Float[Tensor, "B d"]


def lanczos(
    apply: Callable[[Float[Tensor, "B d"]], Float[Tensor, "B d"]], start: Float[Tensor, "B d"], steps: int
) -> Ritz:
    """Extreme eigenvalues of B symmetric operators at once, each applied to its own row, by `steps` products.

    Fully reorthogonalised. A Ritz value never exceeds the largest eigenvalue; `ritz_upper` says how far below it is.
    """
    basis = [start / start.norm(dim=1, keepdim=True)]
    diagonal, beside = [], []
    for _ in range(min(steps, start.shape[1])):
        new = apply(basis[-1])
        diagonal.append((new * basis[-1]).sum(1))
        for _ in range(2):
            for old in basis:
                new = new - (new * old).sum(1, keepdim=True) * old
        length = new.norm(dim=1)
        beside.append(length)
        basis.append(new / length.clamp_min(1e-300)[:, None])
    small = torch.diag_embed(torch.stack(diagonal, 1))
    if len(beside) > 1:
        off = torch.diag_embed(torch.stack(beside[:-1], 1), offset=1)
        small = small + off + off.mT
    values, vectors = torch.linalg.eigh(small)
    top = torch.einsum("bs,sbd->bd", vectors[:, :, -1], torch.stack(basis[:-1]))
    return Ritz(values[:, -1], values[:, 0], top)


def ritz_upper(top: float, bottom: float, dimension: int, steps: int, risk: float = 0.05) -> float:
    """A number that the largest eigenvalue exceeds with probability `risk` at most, over the random start.

    Kuczynski and Wozniakowski (1992): the relative error of m Lanczos steps from a uniform start, in units of the
    spectrum's width, exceeds e with probability at most 1.648 sqrt(d) exp(-sqrt(e) (2m - 1)). `bottom` stands for the
    smallest eigenvalue. Infinite where m is too small to say anything.
    """
    if steps >= dimension:
        return top
    share = (log(1.648 * sqrt(dimension) / risk) / (2 * steps - 1)) ** 2
    return bottom + (top - bottom) / (1 - share) if share < 1 else float("inf")


def interval(values: Float[Tensor, " n"], population: int | None = None) -> tuple[float, float]:
    """Mean of a sample and half the width of its 95 % interval; 0 wide where the sample is the whole population."""
    count = len(values)
    if count < 2:
        return float(values.mean()), 0.0 if population == count else float("inf")
    left = 1.0 if population is None else max(0.0, 1 - count / population)
    return float(values.mean()), Z95 * float(values.std()) * sqrt(left / count)


def sample_variance(
    means: Float[Tensor, "G d"], sizes: Float[Tensor, " G"], centre: Float[Tensor, " d"]
) -> Float[Tensor, " G"]:
    """Terms whose mean over G >= 2 groups is the variance of one sample, E||x - mean||^2 with divisor n - 1.

    means: of the groups that n samples were dealt into at random, sizes: of each; centre: the mean of all samples. One-
    way analysis of variance: sum_j n_j ||mean_j - centre||^2 / (G - 1) is unbiased over the dealing.
    """
    groups = len(sizes)
    return groups / (groups - 1) * sizes * (means - centre).double().square().sum(1)


def batch_variance(batch: int, samples: int) -> tuple[float, float]:
    """E||g - mean||^2 of mini-batches, relative to a sample's: mean over the rounds, and that of the worst one.

    Epochs follow one another, each in a random order of its own, from the start on. A batch that ends an epoch has a
    part of it and a part of the next, each drawn without replacement: sum_i b_i (1 - b_i / D) / b^2 over the parts.
    """
    size = min(batch, samples)
    apart = gcd(size, samples)
    whole = (samples - size) // apart + 1
    parts = [size] * whole + list(range(apart, size, apart))
    each = [(size - (one**2 + (size - one) ** 2) / samples) / size**2 for one in parts]
    return sum(each) / len(each), max(each)


def envelope(x: Sequence[float], y: Sequence[float], least: float) -> list[tuple[float, float]]:
    """The candidates (a, b), a >= least, b >= 0, for the smallest constants with y <= a x + b at every point.

    Every tighter pair violates a point; the candidates are the corners of the set of valid pairs: a = least, lines
    through two points, and b = 0.
    """
    points = list(zip(x, y, strict=True))
    slopes = {least}
    slopes |= {(q - v) / (p - u) for p, q in points for u, v in points if p > u}
    slopes |= {v / u for u, v in points if u > 0}
    return [(a, max(0.0, *(v - a * u for u, v in points))) for a in sorted(slopes) if a >= least]


def secant(gradient_change: float, distance: float) -> float:
    """||grad F(V) - grad F(W)|| / ||V - W||: a lower bound of beta on any convex region that holds both points."""
    return gradient_change / distance if distance > 0 else 0.0


def step_curvature(change: float, slope: float, length_square: float) -> float:
    """The curvature that a step met: beta for which (38) would hold with equality, 2 (F' - F - slope) / ||step||^2."""
    return 2 * (change - slope) / length_square if length_square > 0 else 0.0
