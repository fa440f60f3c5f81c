"""(39), (40), (41), (43) and our bounds, of one round and of a run, from numbers only; proofs: docs/theory.md.

eta: the step size. gradient: Lambda = ||grad F||^2, (42). x: the X of A3, Lambda (ours) or the printed square.
channel: E||Ghat - G||^2 in the weights of F, `channel_energy`. With the default normaliser, which is per device, it
is the sum over normaliser groups of weight times sigma^2 d MSE, and Pi is only a figure of the report. With one common
normaliser it is sigma_t^2 (L + Q) R Pi_t.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from airpfed.core.run_files import Constants


@dataclass(frozen=True)
class AverageBound:
    """Psi_T of (43), a bound on the mean of Lambda over T rounds, by cause."""

    gap: float
    sgd: float
    heterogeneity: float
    channel: float

    @property
    def total(self) -> float:
        """Psi_T."""
        return self.gap + self.sgd + self.heterogeneity + self.channel

    @property
    def shares(self) -> dict[str, float]:
        """The share of each cause in Psi_T; the shares add up to 1."""
        return {name: value / self.total for name, value in vars(self).items()}


def step_size(constants: Constants) -> float:
    """The rule eta = 1 / (lambda (C + 1) beta), the largest step size for which (41) is proved."""
    return 1 / (constants.lam * (constants.c + 1) * constants.beta)


def within_rule(eta: float, constants: Constants) -> bool:
    """Whether (41) and (43) are proved for this step size."""
    return eta <= step_size(constants) * (1 + 1e-9)


def channel_energy(groups: Iterable[tuple[float, float, float]]) -> float:
    """sum_g share_g sigma_g^2 d_g MSE_g over normaliser groups.

    groups: (share, sigma^2 d, MSE) of each; the share is 1 for the shared part and D_n/D for task n's.
    """
    return sum(share * scale * mse for share, scale, mse in groups)


def power_bound(constants: Constants, x: float) -> float:
    """(C + 1)(lambda X + sigma_dif^2) + sigma_SGD^2, the bound of A2 and A3 on sum_k D_k/D E||g_k||^2."""
    return (constants.c + 1) * (constants.lam * x + constants.sigma_dif2) + constants.sigma_sgd2


def first_order(eta: float, gradient: float, x: float) -> float:
    """(39): E[E1 + E2] <= -eta/2 X - eta/2 Lambda of an unbiased aggregate."""
    return -eta / 2 * x - eta / 2 * gradient


def second_order(eta: float, constants: Constants, x: float, channel: float) -> float:
    """(40): E[E3 + E4] <= beta/2 eta^2 (`power_bound` + channel), of an unbiased aggregate.

    The appendix prints (40) without the factor beta/2, which E3 and E4 carry and (41) uses: a misprint.
    """
    return constants.beta / 2 * eta**2 * (power_bound(constants, x) + channel)


def one_round(eta: float, constants: Constants, gradient: float, channel: float) -> float:
    """(41): E[F(t+1) - F(t)] of an unbiased aggregate, if eta <= step_size(constants)."""
    noise = constants.sigma_sgd2 + (constants.c + 1) * constants.sigma_dif2 + channel
    return -eta / 2 * gradient + constants.beta / 2 * eta**2 * noise


def average_bound(eta: float, constants: Constants, gap: float, rounds: int, channel: float) -> AverageBound:
    """(43): 1/T sum_t Lambda_t <= Psi_T, if eta <= step_size(constants); as printed at the rule's step size.

    gap: F(W_1) - F*, with F* = 0 for a cross-entropy. channel: mean channel error over the rounds.
    """
    slope = constants.beta * eta
    return AverageBound(
        gap=2 * gap / (eta * rounds),
        sgd=slope * constants.sigma_sgd2,
        heterogeneity=slope * (constants.c + 1) * constants.sigma_dif2,
        channel=slope * channel,
    )


def aggregate_power(constants: Constants, gradient: float, x: float) -> float:
    """Ours: E||G||^2 <= Lambda + omega (C (lambda X + sigma_dif^2) + sigma_SGD^2).

    omega = constants.largest: the largest weight of a device in a sum, if mini-batches are drawn independently; 1 is
    always right. Under A3 the result is at most `power_bound`.
    """
    noise = constants.c * (constants.lam * x + constants.sigma_dif2) + constants.sigma_sgd2
    return gradient + constants.largest * noise


def one_round_ours(eta: float, constants: Constants, gradient: float, channel: float) -> float:
    """Ours: E[F(t+1) - F(t)] of any aggregate Ghat = c G + r + n, biased or not, for any step:

        -eta (c Lambda - rho sqrt(Lambda A)) + beta/2 eta^2 ((c + rho)^2 A + channel),   A = aggregate_power.

    c = constants.gain; E||r||^2 <= rho^2 E||G||^2 with rho = constants.deviation; E n = 0 given G and r, and
    channel >= E||n||^2. An unbiased aggregate has c = 1 and rho = 0: this is then at most the sum of (39) and (40).
    """
    gain, rho, power = constants.gain, constants.deviation, aggregate_power(constants, gradient, gradient)
    slope = gain * gradient - rho * sqrt(gradient * power)
    return -eta * slope + constants.beta / 2 * eta**2 * ((gain + rho) ** 2 * power + channel)


def average_bound_ours(
    eta: float, constants: Constants, gap: float, rounds: int, channel: float
) -> AverageBound | None:
    """Psi_T of `one_round_ours`; None if the bias is so large that nothing is proved.

    The channel's part of the result is the decrease of Psi_T without the channel's bias and noise.
    """
    full = _sums(eta, constants, gap, rounds, channel)
    clean = _sums(eta, constants.model_copy(update={"gain": 1.0, "deviation": 0.0}), gap, rounds, 0.0)
    if full is None or clean is None:
        return None
    return AverageBound(*clean, channel=sum(full) - sum(clean))


def _sums(
    eta: float, constants: Constants, gap: float, rounds: int, channel: float
) -> tuple[float, float, float] | None:
    """Parts of Psi_T (gap, SGD with channel, heterogeneity) by Young's inequality at its best parameter.

    With A <= a Lambda + b, sqrt(Lambda A) <= (sqrt a + theta/2) Lambda + b / (2 theta) for every theta > 0.
    """
    gain, rho, omega = constants.gain, constants.deviation, constants.largest
    a = 1 + omega * constants.c * constants.lam
    parts = omega * constants.sigma_sgd2, omega * constants.c * constants.sigma_dif2
    half_slope = constants.beta * eta / 2
    left = gain - rho * sqrt(a) - half_slope * (gain + rho) ** 2 * a
    fixed = gap / (eta * rounds) + half_slope * ((gain + rho) ** 2 * sum(parts) + channel)
    theta, cost = _young(left, fixed, rho, sum(parts))
    alpha = left - rho * theta / 2
    if alpha <= 0:
        return None
    noise = half_slope * (gain + rho) ** 2 + cost
    return gap / (eta * rounds) / alpha, (noise * parts[0] + half_slope * channel) / alpha, noise * parts[1] / alpha


def _young(left: float, fixed: float, rho: float, b: float) -> tuple[float, float]:
    """theta that minimises (fixed + rho b / (2 theta)) / (left - rho theta / 2), and rho / (2 theta), or 0, 0.

    The root of (rho/2) fixed theta^2 + (rho^2/2) b theta - (rho/2) b left = 0.
    """
    if rho == 0 or b == 0 or left <= 0:
        return 0.0, 0.0
    theta = (-rho * b / 2 + sqrt((rho * b / 2) ** 2 + fixed * b * left)) / fixed
    return theta, rho / (2 * theta)
