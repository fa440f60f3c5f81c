"""Estimators of the constants beta of A1 and (38), sigma_SGD^2 and C of A2, and sigma_dif^2 and lambda of A3.

They read gradients and Hessian-vector products.
"""

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
    """Largest and smallest Ritz value of each of B operators, and the unit Ritz vector of the largest."""

    top: Float[Tensor, " B"]
    bottom: Float[Tensor, " B"]
    vector: Float[Tensor, "B d"]


def lanczos(
    apply: Callable[[Float[Tensor, "B d"]], Float[Tensor, "B d"]], start: Float[Tensor, "B d"], steps: int
) -> Ritz:
    """Extreme eigenvalues of B symmetric operators at once, by `steps` products each, fully reorthogonalised.

    apply: row b of the result is operator b times row b of the argument. A Ritz value never exceeds the largest
    eigenvalue; `ritz_upper` bounds that eigenvalue from above.
    """
    basis = [start / start.norm(dim=1, keepdim=True)]
    diagonal, off_diagonal = [], []
    for _ in range(min(steps, start.shape[1])):
        new = apply(basis[-1])
        diagonal.append((new * basis[-1]).sum(1))
        for _ in range(2):
            for old in basis:
                new = new - (new * old).sum(1, keepdim=True) * old
        length = new.norm(dim=1)
        off_diagonal.append(length)
        basis.append(new / length.clamp_min(1e-300)[:, None])
    tridiagonal = torch.diag_embed(torch.stack(diagonal, 1))
    if len(off_diagonal) > 1:
        upper = torch.diag_embed(torch.stack(off_diagonal[:-1], 1), offset=1)
        tridiagonal = tridiagonal + upper + upper.mT
    values, vectors = torch.linalg.eigh(tridiagonal)
    top = torch.einsum("bs,sbd->bd", vectors[:, :, -1], torch.stack(basis[:-1]))
    return Ritz(values[:, -1], values[:, 0], top)


def ritz_upper(top: float, bottom: float, dimension: int, steps: int, risk: float = 0.05) -> float:
    """An upper bound of the largest eigenvalue that fails with probability `risk` at most, over the random start.

    top, bottom: Ritz values; `bottom` takes the place of the smallest eigenvalue. Kuczynski and Wozniakowski (1992):
    after m Lanczos steps from a uniform start, the error relative to the spectrum's width exceeds e with probability at
    most 1.648 sqrt(d) exp(-sqrt(e) (2m - 1)). Infinite if m is too small.
    """
    if steps >= dimension:
        return top
    share = (log(1.648 * sqrt(dimension) / risk) / (2 * steps - 1)) ** 2
    return bottom + (top - bottom) / (1 - share) if share < 1 else float("inf")


def confidence_interval(values: Float[Tensor, " n"], population: int | None = None) -> tuple[float, float]:
    """Mean of a sample and half the width of its 95 % interval, which is 0 if the sample is the whole population."""
    count = len(values)
    if count < 2:
        return float(values.mean()), 0.0 if population == count else float("inf")
    left = 1.0 if population is None else max(0.0, 1 - count / population)
    return float(values.mean()), Z95 * float(values.std()) * sqrt(left / count)


def sample_variance(
    means: Float[Tensor, "G d"], sizes: Float[Tensor, " G"], centre: Float[Tensor, " d"]
) -> Float[Tensor, " G"]:
    """Terms whose mean over G >= 2 groups estimates the variance of one sample, E||x - mean||^2 with divisor n - 1.

    means, sizes: mean and size of each group; n samples were assigned to groups at random. centre: the mean of all
    samples. One-way analysis of variance: sum_j n_j ||mean_j - centre||^2 / (G - 1) is unbiased over the assignment.
    """
    groups = len(sizes)
    return groups / (groups - 1) * sizes * (means - centre).double().square().sum(1)


def batch_variance(batch: int, samples: int) -> tuple[float, float]:
    """The variance of a mini-batch gradient, as a multiple of that of one sample: mean over rounds, and largest.

    batch, samples: b and D, the number of samples of the mini-batch and of the device. Each epoch has a random order of
    its own. A mini-batch that ends an epoch consists of a part of it and a part of the next epoch, each drawn without
    replacement: sum_i b_i (1 - b_i / D) / b^2 over the parts.
    """
    size = min(batch, samples)
    step = gcd(size, samples)
    undivided = (samples - size) // step + 1
    first_parts = [size] * undivided + list(range(step, size, step))
    variances = [(size - (part**2 + (size - part) ** 2) / samples) / size**2 for part in first_parts]
    return sum(variances) / len(variances), max(variances)


def envelope(x: Sequence[float], y: Sequence[float], minimum: float) -> list[tuple[float, float]]:
    """The candidates (a, b), a >= minimum, b >= 0, for the smallest constants with y <= a x + b at every point.

    They are the corners of the set of valid pairs: a = minimum, lines through two points, and b = 0. Every tighter pair
    violates a point.
    """
    points = list(zip(x, y, strict=True))
    slopes = {minimum}
    slopes |= {(q - v) / (p - u) for p, q in points for u, v in points if p > u}
    slopes |= {v / u for u, v in points if u > 0}
    return [(a, max(0.0, *(v - a * u for u, v in points))) for a in sorted(slopes) if a >= minimum]


def secant(gradient_change: float, distance: float) -> float:
    """||grad F(V) - grad F(W)|| / ||V - W||: a lower bound of beta on any convex region around both points."""
    return gradient_change / distance if distance > 0 else 0.0


def step_curvature(change: float, slope: float, length_square: float) -> float:
    """beta for which (38) holds with equality: 2 (F' - F - slope) / ||step||^2.

    change: F' - F. slope: E1 + E2. length_square: ||step||^2.
    """
    return 2 * (change - slope) / length_square if length_square > 0 else 0.0
