"""(43) along whole runs of quadratics with known constants, and how near it is where every step is an equality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airpfed.core.run_files import Constants
from airpfed.theory import bounds
from airpfed.theory.inner_product import Weights, weights_of

RUNS = 100


def drawn(rng: torch.Generator, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=rng, dtype=torch.float64)


def least(
    weights: Weights, bend: torch.Tensor, middle: torch.Tensor, task_of: torch.Tensor, d_s: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where F is least: the normal equations in (W_s, W_p,1, ..., W_p,N)."""
    count, d = middle.shape
    tasks, d_p = len(weights.task), d - d_s
    size = d_s + tasks * d_p
    h, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for k in range(count):
        place = torch.arange(d)
        place[d_s:] = d_s + int(task_of[k]) * d_p + torch.arange(d_p)
        h[place[:, None], place[None, :]] += weights.device[k] * bend
        right[place] += weights.device[k] * (bend @ middle[k])
    found = torch.linalg.lstsq(h, right[:, None], driver="gelsd").solution[:, 0]
    return found[None, :d_s], found[None, d_s:].view(1, tasks, d_p)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    tasks=st.integers(1, 3), each=st.integers(1, 3), d_s=st.integers(1, 5), d_p=st.integers(1, 5),
    sgd=st.sampled_from([0.0, 1.0]), c=st.sampled_from([0.0, 1.0]), channel=st.sampled_from([0.0, 0.1, 3.0]),
    rounds=st.sampled_from([1, 5, 40]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_psi_bounds_the_mean_gradient_of_whole_runs(
    tasks: int, each: int, d_s: int, d_p: int, sgd: float, c: float, channel: float, rounds: int, seed: int
) -> None:
    """One Hessian for all devices: A3 holds with lambda = 1 and the same sigma_dif^2 everywhere."""
    rng = torch.Generator().manual_seed(seed)
    count, d = tasks * each, d_s + d_p
    task_of = torch.arange(tasks).repeat_interleave(each)
    weights = weights_of(torch.randint(1, 9, (count,), generator=rng).double(), task_of, tasks)
    half = drawn(rng, d, d)
    bend, middle = half @ half.T / d, drawn(rng, count, d)
    within = torch.stack([weights.in_task * (task_of == n) for n in range(tasks)])

    def rows(s: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        own = torch.cat([s[:, None].expand(-1, count, -1), p[:, task_of]], 2)
        return (own - middle) @ bend

    def sums(g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.einsum("k,mki->mi", weights.device, g[:, :, :d_s]), within @ g[:, :, d_s:]

    def square(s: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return s.square().sum(1) + p.square().sum(2) @ weights.task

    def loss(s: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        own = torch.cat([s[:, None].expand(-1, count, -1), p[:, task_of]], 2) - middle
        return 0.5 * torch.einsum("mki,ij,mkj->mk", own, bend, own) @ weights.device

    s, p = drawn(rng, 1, d_s).expand(RUNS, -1), drawn(rng, 1, tasks, d_p).expand(RUNS, -1, -1)
    first = rows(s[:1], p[:1])
    spread = float((first[0].square().sum(1) @ weights.device) - square(*sums(first)))
    k = Constants(
        beta=float(torch.linalg.eigvalsh(bend).max()), c=c, sigma_sgd2=sgd, lam=1.0, sigma_dif2=spread,
        lam_printed=1.0, sigma_dif2_printed=spread,
    )  # fmt: skip
    eta = bounds.step_size(k)
    begin, total = float(loss(s[:1], p[:1])), torch.zeros(RUNS, dtype=torch.float64)
    gap = begin - float(loss(*least(weights, bend, middle, task_of, d_s)))
    for _ in range(rounds):
        clean = rows(s, p)
        total = total + square(*sums(clean)) / rounds
        size = (c * clean.square().sum(2) + sgd) / d
        g_s, g_p = sums(clean + size.sqrt()[:, :, None] * drawn(rng, RUNS, count, d))
        s = s - eta * (g_s + (channel / d) ** 0.5 * drawn(rng, RUNS, d_s))
        p = p - eta * (g_p + (channel / d) ** 0.5 * drawn(rng, RUNS, tasks, d_p))
    psi = bounds.average_bound(eta, k, gap, rounds, channel).total
    error = float(total.std()) / RUNS**0.5
    print(f"T {rounds} Psi_T / mean Lambda {psi / float(total.mean()):.3g}")
    assert float(total.mean()) <= psi + 5 * error + 1e-9 * psi


@pytest.mark.parametrize(("rounds", "channel", "regime"), [(3, 1e-4, "start"), (400, 10.0, "noise floor")])
def test_psi_is_near_where_only_the_channel_is_noisy(rounds: int, channel: float, regime: str) -> None:
    """Isotropic quadratics of equal curvature, sigma_SGD = sigma_dif = C = 0: measured < Psi_T < 5 measured."""
    rng = torch.Generator().manual_seed(1)
    beta, d_s, d_p = 3.0, 6, 4
    weights = weights_of(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1]), 2)
    s, p = drawn(rng, RUNS, d_s), drawn(rng, RUNS, 2, d_p)
    k = Constants(beta=beta, c=0, sigma_sgd2=0, lam=1, sigma_dif2=0, lam_printed=1, sigma_dif2_printed=0)
    eta = bounds.step_size(k)
    square = s.square().sum(1) + p.square().sum(2) @ weights.task
    gap, total = float(square.mean()) * beta / 2, torch.zeros(RUNS, dtype=torch.float64)
    for _ in range(rounds):
        total += beta**2 * (s.square().sum(1) + p.square().sum(2) @ weights.task) / rounds
        s = s - eta * (beta * s + (channel / (d_s + d_p)) ** 0.5 * drawn(rng, RUNS, d_s))
        p = p - eta * (beta * p + (channel / (d_s + d_p)) ** 0.5 * drawn(rng, RUNS, 2, d_p))
    psi, measured = bounds.average_bound(eta, k, gap, rounds, channel), float(total.mean())
    dominant = "gap" if regime == "start" else "channel"
    assert psi.shares[dominant] > 0.9
    print(f"{regime}: Psi_T / mean Lambda {psi.total / measured:.4g}")
    error = float(total.std()) / RUNS**0.5
    assert measured <= psi.total + 5 * error and psi.total < 5 * measured
