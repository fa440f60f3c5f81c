"""The bounds of one round and of a run, from numbers only: docs/theory.md proves each of them.

Notation: eta the step; `gradient` Lambda = ||grad F||^2, (42); x what A3 compares with: Lambda (ours), or the printed
square. `channel` is E||Ghat - G||^2 in the weights of F: sigma_t^2 (L + Q) R Pi_t for one common normaliser, in general
`channel_energy`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from airpfed.core.run_files import Constants


@dataclass(frozen=True)
class Average:
    """Psi_T, a bound on the mean of Lambda over T rounds, by cause."""

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
        """Each cause's part of Psi_T; they add up to 1."""
        return {name: value / self.total for name, value in vars(self).items()}


def step_size(constants: Constants) -> float:
    """The rule eta = 1 / (lambda (C + 1) beta), which is also the largest step that (41) is proved for."""
    return 1 / (constants.lam * (constants.c + 1) * constants.beta)


def within_rule(eta: float, constants: Constants) -> bool:
    """Whether (41) and (43) are proved for this step."""
    return eta <= step_size(constants) * (1 + 1e-9)


def channel_energy(groups: Iterable[tuple[float, float, float]]) -> float:
    """sum_g share_g sigma_g^2 d_g MSE_g of (share, sigma^2 d, MSE) a normaliser group.

    share: 1 for the shared part, D_n/D for task n's. With one sigma for all it is sigma_t^2 (L + Q) R Pi_t.
    """
    return sum(share * scale * mse for share, scale, mse in groups)


def sent_power(constants: Constants, x: float) -> float:
    """What A2 and A3 allow sum_k D_k/D E||g_k||^2 to be: (C + 1)(lambda X + sigma_dif^2) + sigma_SGD^2."""
    return (constants.c + 1) * (constants.lam * x + constants.sigma_dif2) + constants.sigma_sgd2


def first_order(eta: float, gradient: float, x: float) -> float:
    """(39): E[E1 + E2] <= -eta/2 X - eta/2 Lambda of an unbiased aggregate."""
    return -eta / 2 * x - eta / 2 * gradient


def second_order(eta: float, constants: Constants, x: float, channel: float) -> float:
    """(40): E[E3 + E4] <= beta/2 eta^2 (what devices send, and the channel's energy), of an unbiased aggregate.

    The appendix prints (40) without the factor beta/2, which E3 and E4 carry and (41) uses: a slip of print.
    """
    return constants.beta / 2 * eta**2 * (sent_power(constants, x) + channel)


def one_round(eta: float, constants: Constants, gradient: float, channel: float) -> float:
    """(41): E[F(t+1) - F(t)] of an unbiased aggregate, if eta <= step_size(constants)."""
    noise = constants.sigma_sgd2 + (constants.c + 1) * constants.sigma_dif2 + channel
    return -eta / 2 * gradient + constants.beta / 2 * eta**2 * noise


def average(eta: float, constants: Constants, gap: float, rounds: int, channel: float) -> Average:
    """(43): 1/T sum_t Lambda_t <= Psi_T, if eta <= step_size(constants); at the rule's step it reads as printed.

    gap: F(W_1) - F*, where 0 may stand for F* of a cross-entropy. channel: mean energy of the rounds.
    """
    slope = constants.beta * eta
    return Average(
        gap=2 * gap / (eta * rounds),
        sgd=slope * constants.sigma_sgd2,
        heterogeneity=slope * (constants.c + 1) * constants.sigma_dif2,
        channel=slope * channel,
    )


def aggregate_power(constants: Constants, gradient: float, x: float) -> float:
    """Ours, for E||G||^2 <= Lambda + omega (C (lambda X + sigma_dif^2) + sigma_SGD^2).

    omega = constants.largest: the largest weight of a device in a sum, where mini-batches are drawn independently; 1
    always holds. Never above `sent_power` where A3 holds, since devices disagree about G, not about its mean.
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


def average_ours(eta: float, constants: Constants, gap: float, rounds: int, channel: float) -> Average | None:
    """Psi_T of `one_round_ours`; None where the bias is so large that nothing is proved.

    channel: what Psi_T would lose without the channel, its bias and its noise.
    """
    whole = _sums(eta, constants, gap, rounds, channel)
    clean = _sums(eta, constants.model_copy(update={"gain": 1.0, "deviation": 0.0}), gap, rounds, 0.0)
    if whole is None or clean is None:
        return None
    return Average(*clean, channel=sum(whole) - sum(clean))


def _sums(
    eta: float, constants: Constants, gap: float, rounds: int, channel: float
) -> tuple[float, float, float] | None:
    """Gap, SGD with channel, and heterogeneity parts of Psi_T, by Young's inequality at its best parameter.

    With A <= a Lambda + b, sqrt(Lambda A) <= (sqrt a + theta/2) Lambda + b / (2 theta) for every theta > 0.
    """
    gain, rho, omega = constants.gain, constants.deviation, constants.largest
    a = 1 + omega * constants.c * constants.lam
    parts = omega * constants.sigma_sgd2, omega * constants.c * constants.sigma_dif2
    bend = constants.beta * eta / 2
    left = gain - rho * sqrt(a) - bend * (gain + rho) ** 2 * a
    fixed = gap / (eta * rounds) + bend * ((gain + rho) ** 2 * sum(parts) + channel)
    theta, cost = _young(left, fixed, rho, sum(parts))
    alpha = left - rho * theta / 2
    if alpha <= 0:
        return None
    noise = bend * (gain + rho) ** 2 + cost
    return gap / (eta * rounds) / alpha, (noise * parts[0] + bend * channel) / alpha, noise * parts[1] / alpha


def _young(left: float, fixed: float, rho: float, b: float) -> tuple[float, float]:
    """theta that minimises (fixed + rho b / (2 theta)) / (left - rho theta / 2), and rho / (2 theta); 0, 0 if no bias.

    The root of (rho/2) fixed theta^2 + (rho^2/2) b theta - (rho/2) b left = 0.
    """
    if rho == 0 or b == 0 or left <= 0:
        return 0.0, 0.0
    theta = (-rho * b / 2 + sqrt((rho * b / 2) ** 2 + fixed * b * left)) / fixed
    return theta, rho / (2 * theta)
