"""Correlated symbols through real designs: the claim against the antennas, the gain, and what the power gives away."""

from dataclasses import astuple, replace
from functools import cache
from itertools import product
from math import nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from airpfed.air.correlation import (
    MAX_CORRELATION,
    Correlation,
    CorrelationOperator,
    NormalEquations,
    claimed_mse,
    correlated_pairs,
    correlation_matrix,
    discounted_sum,
    estimate_correlation,
    incoherent_noise,
    normal_equations,
    power_terms,
    scale_receivers,
)
from airpfed.air.designs import DESIGNS
from airpfed.air.impairments import UNDISTORTED
from airpfed.air.problem import Transceiver, TransceiverProblem, gains, mse, silent
from airpfed.air.symbols import Packing, pack_symbols, unpack_symbols
from airpfed.core.rng import stream

PATH_GAIN, BLOCKS, ANTENNAS, DEVICES, TASKS = 1e-12, 4, 4, 9, 3
TASK_OF = torch.arange(DEVICES) % TASKS
POWER = torch.linspace(0.4, 1.0, DEVICES, dtype=torch.float64)
RHOS = [Correlation(0.0, 0.0), Correlation(0.3, 0.1), Correlation(0.7, 0.4)]


def complex_normal(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=rng)


def targets_of(targets: int) -> Tensor:
    """One target wants everyone (the s-slot), or each task has its own."""
    return TASK_OF if targets > 1 else torch.zeros_like(TASK_OF)


def make(targets: int, snr_db: float, csi: float = 0.0, packing: Packing = "iq", seed: int = 0) -> TransceiverProblem:
    """Rayleigh fading, unequal gains, weights and powers; the imaginary half of the noise is gone in real packing."""
    rng = stream(seed, "slot", targets)
    gain = PATH_GAIN * 10 ** (torch.rand(DEVICES, dtype=torch.float64, generator=rng) - 0.5)
    member = (targets_of(targets) == torch.arange(targets)[:, None]).double()
    share = member * (0.5 + torch.rand(DEVICES, dtype=torch.float64, generator=rng))
    half = 0.5 if packing == "real" else 1.0
    return TransceiverProblem(
        h=gain.sqrt() * complex_normal(BLOCKS, ANTENNAS, DEVICES, rng=rng),
        weights=share / share.sum(1, keepdim=True),
        target_weight=torch.full((targets,), 1 / targets, dtype=torch.float64),
        power_limit=0.05 + 0.1 * torch.rand(DEVICES, dtype=torch.float64, generator=rng),
        noise=half * 0.1 * PATH_GAIN * 10 ** (-snr_db / 10),
        csi_variance=torch.full((DEVICES,), half * csi * PATH_GAIN, dtype=torch.float64),
        real=packing == "real",
    )


@cache
def designed(
    design: str, targets: int, snr_db: float, csi: float = 0.0, packing: Packing = "iq"
) -> tuple[TransceiverProblem, Transceiver]:
    problem = make(targets, snr_db, csi, packing)
    return problem, DESIGNS[design](problem)


def symbols(rho: Correlation, packing: Packing, uses: int, rng: torch.Generator) -> Tensor:
    """A part common to all, one common to a task, one's own; powers POWER. (blocks, K, uses)."""
    entries = uses if packing == "real" else 2 * uses

    def normal(rows: int) -> Tensor:
        return torch.randn(BLOCKS, rows, entries, dtype=torch.float64, generator=rng)

    common, task, own = normal(1), normal(TASKS)[:, TASK_OF], normal(DEVICES)
    u = (
        rho.between_tasks**0.5 * common
        + (rho.within_task - rho.between_tasks) ** 0.5 * task
        + (1 - rho.within_task) ** 0.5 * own
    )
    return torch.stack([pack_symbols(block, packing) for block in POWER.sqrt()[:, None] * u])


def through(
    problem: TransceiverProblem,
    made: Transceiver,
    rho: Correlation,
    packing: Packing,
    uses: int,
    scrambled: bool,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Antenna by antenna, scrambled or not. Received and wanted real entries, (B, T, entries)."""
    rng, targets, full = stream(seed, "air"), len(problem.weights), 2.0 if packing == "real" else 1.0
    x = symbols(rho, packing, uses, rng)
    signs = torch.ones(BLOCKS, targets, uses, dtype=torch.float64)
    if scrambled:
        signs = 2.0 * torch.randint(2, (BLOCKS, targets, uses), generator=rng).double() - 1
    sent = made.transmit_factors[:, :, None] * signs[:, targets_of(targets)] * x
    y = problem.h @ sent + (full * problem.noise) ** 0.5 * complex_normal(BLOCKS, ANTENNAS, uses, rng=rng)
    if bool(problem.csi_variance.any()):
        error = complex_normal(uses, BLOCKS, ANTENNAS, DEVICES, rng=rng) * (full * problem.csi_variance).sqrt()
        y = y + torch.einsum("ubmk,bku->bmu", error, sent)
    heard = made.receiver.mH @ y * signs
    wanted = problem.weights.to(x.dtype) @ x
    entries = uses if packing == "real" else 2 * uses
    both = [torch.stack([unpack_symbols(block, packing, entries) for block in part]) for part in (heard, wanted)]
    return both[0], both[1]


def z_score(squares: Tensor, expected: Tensor) -> float:
    """Largest deviation of a mean over the last axis in standard errors, and of the mean over all blocks.

    Neighbours of iq entries share a use and its CSI error: the spread is that of their mean.
    """
    paired = squares.unflatten(-1, (-1, 2)).mean(-1)
    error = paired.mean(-1) - expected
    variance = paired.var(-1) / paired.shape[-1]
    z, whole = error / variance.sqrt(), error.sum(0) / variance.sum(0).sqrt()
    return float(torch.cat([z.flatten(), whole.flatten()]).abs().max())


# ---------------------------------------------------------------- the claim


@pytest.mark.parametrize("rho", RHOS, ids=str)
@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("targets", [1, TASKS])
@pytest.mark.parametrize("design", ["uniform_forcing", "mmse", "channel_inversion", "naive_ao"])
def test_the_claim_is_what_is_measured(design, targets, packing, rho):
    for snr_db, csi in ((-10.0, 0.0), (10.0, 0.0), (10.0, 0.05)):
        problem, made = designed(design, targets, snr_db, csi, packing)
        scrambled, uses = targets > 1, 5000 if csi else 20_000
        R = correlation_matrix(rho, TASK_OF, targets_of(targets), scrambled)
        expected = claimed_mse(problem, made, R, POWER)
        got, wanted = through(problem, made, rho, packing, uses, scrambled)
        squares = (got - wanted).square()
        assert z_score(squares, expected) < 5
        if not csi:
            assert (squares.mean((0, -1)) / expected.mean(0) - 1).abs().max() < 0.03


@pytest.mark.parametrize(("targets", "packing"), [(1, "iq"), (TASKS, "real")])
def test_a_slip_of_two_per_cent_is_caught(targets, packing):
    problem, made = designed("mmse", targets, -10.0, 0.0, packing)
    R = correlation_matrix(RHOS[2], TASK_OF, targets_of(targets), targets > 1)
    expected = claimed_mse(problem, made, R, POWER)
    got, wanted = through(problem, made, RHOS[2], packing, 150_000, targets > 1)
    squares = (got - wanted).square()
    assert z_score(squares, expected) < 5
    assert z_score(squares, 1.02 * expected) > 5
    assert z_score(squares, 0.98 * expected) > 5


def test_without_scrambling_tasks_correlate_in_a_slot_of_several_receivers():
    problem, made = designed("mmse", TASKS, 10.0)
    got, wanted = through(problem, made, RHOS[2], "iq", 20_000, scrambled=False)
    squares = (got - wanted).square()
    plain, scrambled = (
        claimed_mse(problem, made, correlation_matrix(RHOS[2], TASK_OF, TASK_OF, s), POWER) for s in (False, True)
    )
    assert z_score(squares, plain) < 5
    assert z_score(squares, scrambled) > 5


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("targets", [1, TASKS])
def test_independent_symbols_of_unit_power_give_the_mse_of_the_slot(targets, packing):
    problem, made = designed("mmse", targets, 10.0, 0.05, packing)
    power = torch.ones(BLOCKS, targets, DEVICES, dtype=torch.float64)
    for each in (power[0, 0], power[0], power):
        got = claimed_mse(problem, made, torch.eye(DEVICES, dtype=torch.float64), each)
        torch.testing.assert_close(got, mse(problem, made))


def test_one_matrix_a_block_is_the_same_block_by_block():
    problem, made = designed("mmse", 1, 10.0)
    each = torch.stack(
        [correlation_matrix(Correlation(0.2 * b, 0.1 * b), TASK_OF, targets_of(1), False) for b in range(BLOCKS)]
    )
    together = claimed_mse(problem, made, each, POWER)
    alone = torch.stack([claimed_mse(problem, made, R, POWER)[b] for b, R in enumerate(each)])
    torch.testing.assert_close(together, alone)


def test_the_matrix():
    task_of = torch.tensor([0, 0, 1])
    free = correlation_matrix(Correlation(0.5, 0.2), task_of, torch.zeros_like(task_of), False)
    apart = correlation_matrix(Correlation(0.5, 0.2), task_of, task_of, True)
    assert free.tolist() == [[1, 0.5, 0.2], [0.5, 1, 0.2], [0.2, 0.2, 1]]
    assert apart.tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), scrambled=st.booleans(), rho=st.sampled_from(RHOS))
def test_labels_stand_for_the_matrix(seed, scrambled, rho):
    """Any tasks on any targets: every use of R costs K with labels and K^2 with the matrix, and gives the same."""
    rng = stream(seed, "labels")
    task_of, target_of = (torch.randint(n, (DEVICES,), generator=rng) for n in (4, TASKS))
    problem, made, _, power = random_case(seed, "real" if seed % 2 else "iq")
    dense, labels = (
        correlation_matrix(rho, task_of, target_of, scrambled),
        correlated_pairs(task_of, target_of, scrambled),
    )
    R = CorrelationOperator(rho, labels)
    torch.testing.assert_close(R.times(torch.eye(DEVICES, dtype=torch.float64)), dense, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(
        claimed_mse(problem, made, R, power), claimed_mse(problem, made, dense, power), rtol=1e-12, atol=0
    )
    a, b = (scale_receivers(problem, made, one, power).receiver for one in (R, dense))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=0)
    found = power_terms(problem, made, labels, power)
    level = found.incoherent + rho.within_task * found.within_task + rho.between_tasks * found.between_tasks
    v = (gains(problem.h, made) * power.sqrt(), incoherent_noise(problem, made, power, UNDISTORTED))
    parts = torch.stack([v[0].real, v[0].imag])[: 1 if problem.real else 2]
    torch.testing.assert_close(level, ((parts @ dense) * parts).sum((0, -1)) + v[1], rtol=1e-12, atol=0)


# ---------------------------------------------------------------- the gain


def random_case(seed: int, packing: Packing) -> tuple[TransceiverProblem, Transceiver, Tensor, Tensor]:
    """Any transceiver at all, and any correlation matrix of any rank."""
    rng = stream(seed, "gain")
    problem = make(TASKS, 10.0, 0.05, packing, seed)
    made = Transceiver(
        complex_normal(BLOCKS, ANTENNAS, TASKS, rng=rng) / PATH_GAIN**0.5, complex_normal(BLOCKS, DEVICES, rng=rng), 0
    )
    factor = torch.randn(DEVICES, 1 + seed % DEVICES, dtype=torch.float64, generator=rng)
    factor = factor / factor.norm(dim=1, keepdim=True)
    return problem, made, factor @ factor.T, torch.rand(BLOCKS, TASKS, DEVICES, dtype=torch.float64, generator=rng)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), packing=st.sampled_from(["iq", "real"]), silence=st.booleans())
def test_the_gain_is_the_best_real_scalar(seed, packing, silence):
    problem, made, R, power = random_case(seed, packing)
    if silence:
        problem = replace(problem, noise=0.0, csi_variance=torch.zeros(DEVICES, dtype=torch.float64))
    best = scale_receivers(problem, made, R, power)
    least = claimed_mse(problem, best, R, power)
    for factor in (1.0, 0.0, 0.99, 1.01, -1.0):
        start = made if factor in (1.0, 0.0) else best
        other = Transceiver(start.receiver * factor, made.transmit_factors, 0)
        assert (least <= claimed_mse(problem, other, R, power) * (1 + 1e-9) + 1e-12).all()


def test_claim_and_gain_count_the_distortions_of_amplifiers_that_agree():
    """Beside the error of gains: all of `correlated_distortion`, by hand for two devices that send the same."""
    problem = TransceiverProblem.from_channels(torch.ones(1, 1, 2, dtype=torch.complex128), power_limit=1.0, noise=0.2)
    ones, R = torch.ones(1, 2, dtype=torch.complex128), torch.ones(2, 2, dtype=torch.float64)
    made, power = Transceiver(ones[:, :1, None], ones, 0), torch.ones(1, 1, 2, dtype=torch.float64)
    orders = torch.tensor([[[0.3, 0.1], [0.2, -0.1]]], dtype=torch.float64)
    amplified = replace(UNDISTORTED, by_order=orders)
    cross = 2 * (0.3 * 0.2 - 0.1 * 0.1)
    more = claimed_mse(problem, made, R, power, amplified) - claimed_mse(problem, made, R, power)
    assert float(more) == pytest.approx(cross)
    best = scale_receivers(problem, made, R, power, amplified)
    noise = float(incoherent_noise(problem, made, power, amplified))
    wanted = float((R.sum(0) * problem.weights[0]).sum()) / (4 + cross + noise)
    assert float(best.receiver.real) == pytest.approx(wanted)


def test_what_is_exact_stays():
    """No noise and a square channel inverted: nothing to shrink, whatever the correlation."""
    problem = replace(make(1, 10.0), noise=0.0)
    receiver = problem.h[:, :, :1] / problem.h[:, :, :1].abs().square().sum(1, keepdim=True)
    transmit = problem.weights[0] / (receiver.mH @ problem.h)[:, 0]
    made = Transceiver(receiver, transmit, 3)
    R = correlation_matrix(RHOS[2], TASK_OF, targets_of(1), False)
    kept = scale_receivers(problem, made, R, POWER)
    torch.testing.assert_close(kept.receiver, receiver)
    assert (kept.transmit_factors is transmit, kept.iterations) == (True, 3)
    assert claimed_mse(problem, kept, R, POWER).max() < 1e-20


def test_a_cancelled_sum_does_not_blow_the_gain_up():
    """v in the null space of R and no noise: what is left is rounding, and no gain may be made of it."""
    problem = replace(make(1, 10.0), noise=0.0)
    receiver = problem.h[:, :, :1] / problem.h[:, :, :1].abs().square().sum(1, keepdim=True)
    wave = torch.cat([torch.full((8,), 0.1), torch.tensor([-0.8])]).double()
    made = Transceiver(receiver, wave / (receiver.mH @ problem.h)[:, 0], 0)
    everyone = torch.ones(DEVICES, DEVICES, dtype=torch.float64)
    torch.testing.assert_close(scale_receivers(problem, made, everyone, torch.ones_like(POWER)).receiver, receiver)


def test_the_gain_repairs_the_shrinkage_as_far_as_it_says():
    problem, made = designed("mmse", 1, -10.0)
    R = correlation_matrix(RHOS[2], TASK_OF, targets_of(1), False)
    best = scale_receivers(problem, made, R, POWER)
    found = []
    for one in (made, best):
        got, wanted = through(problem, one, RHOS[2], "iq", 20_000, False)
        found.append((got - wanted).square().mean())
        assert z_score((got - wanted).square(), claimed_mse(problem, one, R, POWER)) < 5
    said = float(claimed_mse(problem, best, R, POWER).mean() / claimed_mse(problem, made, R, POWER).mean())
    assert float(found[1] / found[0]) == pytest.approx(said, rel=0.03)
    assert said < 0.75


# ---------------------------------------------------------------- what a receiver learns


def learned(
    targets: int, snr_db: float, rho: Correlation, seed: int, packing: Packing = "iq", design: str = "mmse"
) -> NormalEquations:
    """Evidence of 20000 uses spread over the blocks; several targets are scrambled."""
    problem, made = designed(design, targets, snr_db, 0.0, packing)
    got, _ = through(problem, made, rho, packing, 20_000 // BLOCKS, targets > 1, seed)
    expected = power_terms(problem, made, correlated_pairs(TASK_OF, targets_of(targets), targets > 1), POWER)
    return normal_equations(expected, got.square().mean(-1), torch.full(got.shape[:2], got.shape[-1]).double(), rho)


@cache
def learned_tdma(snr_db: float) -> tuple[tuple[Tensor, TransceiverProblem, Transceiver], ...]:
    slots = []
    for task in range(TASKS):
        mine, whole = task == TASK_OF, make(TASKS, snr_db)
        problem = TransceiverProblem(
            whole.h[:, :, mine], whole.weights[task : task + 1, mine], torch.ones(1, dtype=torch.float64),
            whole.power_limit[mine], whole.noise, whole.csi_variance[mine],
        )  # fmt: skip
        slots.append((mine, problem, DESIGNS["mmse"](problem)))
    return tuple(slots)


def tdma(snr_db: float, rho: Correlation, seed: int, uses: int = 5000) -> NormalEquations:
    """A p-slot a task, one after the other, each with its own symbols."""
    total = NormalEquations()
    for task, (mine, problem, made) in enumerate(learned_tdma(snr_db)):
        rng = stream(seed, "tdma", task)
        x = symbols(rho, "iq", uses, rng)[:, mine]
        noise = complex_normal(BLOCKS, ANTENNAS, uses, rng=rng)
        y = problem.h @ (made.transmit_factors[:, :, None] * x) + problem.noise**0.5 * noise
        power = (made.receiver.mH @ y).abs().square().mean(-1)
        few = torch.zeros(int(mine.sum()), dtype=torch.int64)
        expected = power_terms(problem, made, correlated_pairs(few, few, False), POWER[mine])
        total = total + normal_equations(expected, power, torch.full_like(power, 2.0 * uses), rho)
    return total


def deviation(found: list[float], true: float) -> float:
    values = torch.tensor(found, dtype=torch.float64)
    return abs(float((values.mean() - true) / (values.std() / len(values) ** 0.5)))


@pytest.mark.parametrize("rho", RHOS[1:], ids=str)
@pytest.mark.parametrize("way", ["iq", "real", "tdma"])
def test_both_correlations_are_found(way, rho):
    """At 10 dB, 20000 uses a slot: no bias in 25 rounds, and one round is close by itself."""
    found = []
    for seed in range(25):
        packing = "real" if way == "real" else "iq"
        personal = tdma(10.0, rho, seed) if way == "tdma" else learned(TASKS, 10.0, rho, 2 * seed, packing)
        found.append(estimate_correlation(personal + learned(1, 10.0, rho, 2 * seed + 1, packing)))
    assert deviation([one.within_task for one in found], rho.within_task) < 5
    assert deviation([one.between_tasks for one in found], rho.between_tasks) < 5
    assert max(abs(one.within_task - rho.within_task) for one in found) < 0.06
    assert max(abs(one.between_tasks - rho.between_tasks) for one in found) < 0.06


def test_the_evidence_is_an_inverse_variance():
    """Tasks by turns: the estimate scatters by 1/sqrt(evidence), since every equation is independent."""
    count = 300
    each = [tdma(10.0, RHOS[1], seed, uses=200) for seed in range(count)]
    values = torch.tensor([one.pure_wy / one.pure_ww for one in each])
    ratio = float(values.var()) * each[0].pure_ww
    assert abs(ratio - 1) < 5 * (2 / count) ** 0.5 < 0.5


def test_no_correlation_is_found_where_there_is_none():
    for seed in range(10):
        got = estimate_correlation(learned(TASKS, 10.0, RHOS[0], 2 * seed) + learned(1, 10.0, RHOS[0], 2 * seed + 1))
        assert got.within_task < 0.1
        assert got.between_tasks < 0.1


def test_an_estimate_without_p_slots_is_one_scalar_that_explains_the_power():
    one = Correlation(0.4, 0.4)
    found = [estimate_correlation(learned(1, 10.0, one, seed)) for seed in range(20)]
    assert all(both.within_task == both.between_tasks for both in found)
    assert deviation([both.within_task for both in found], 0.4) < 5


@pytest.mark.parametrize(("design", "rho"), list(product(["mmse", "uniform_forcing"], RHOS)), ids=str)
def test_estimates_stay_in_range_in_deep_noise(design, rho):
    for seed in range(10):
        got = estimate_correlation(
            learned(TASKS, -10.0, rho, 2 * seed, design=design) + learned(1, -10.0, rho, 2 * seed + 1, design=design)
        )
        assert 0 <= got.between_tasks <= got.within_task <= MAX_CORRELATION


def test_a_wrong_belief_costs_precision_not_truth():
    """The weights move, the mean does not."""
    problem, made = designed("mmse", 1, 10.0)
    expected = power_terms(problem, made, correlated_pairs(TASK_OF, targets_of(1), False), POWER)
    power = expected.incoherent + 0.3 * expected.within_task + 0.3 * expected.between_tasks
    many = torch.full_like(power, 1e9)
    for belief in RHOS:
        assert estimate_correlation(normal_equations(expected, power, many, belief)).within_task == pytest.approx(
            0.3, abs=1e-4
        )


def test_memory_fades():
    old, new = NormalEquations(*map(float, range(7))), NormalEquations(*map(float, range(10, 17)))
    assert astuple(discounted_sum(old, new, 0.5)) == tuple(0.5 * a + a + 10 for a in range(7))
    assert old + new == discounted_sum(old, new, 1.0)
    assert discounted_sum(NormalEquations(), new) == new


# ---------------------------------------------------------------- limiting cases


def finite(*values: Tensor) -> bool:
    return all(bool(v.isfinite().all()) for v in values)


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("noise", [0.0, 1e-13])
def test_silence_teaches_nothing(packing, noise):
    """All silent, or without power: weights' own power is the error, gains stay, no correlation is claimed."""
    problem = replace(make(TASKS, 10.0, 0.0, packing), noise=noise)
    R = correlation_matrix(RHOS[2], TASK_OF, TASK_OF, True)
    _, made = designed("mmse", TASKS, 10.0)
    correlated = correlated_pairs(TASK_OF, TASK_OF, True)
    for one, power in ((silent(problem), POWER), (made, torch.zeros_like(POWER))):
        quiet = scale_receivers(problem, one, R, power)
        assert finite(quiet.receiver.abs(), claimed_mse(problem, quiet, R, power))
        expected = power_terms(problem, one, correlated, power)
        for heard, entries in ((expected.incoherent, 100.0), (torch.full_like(expected.incoherent, nan), 0.0)):
            known = normal_equations(expected, heard, torch.full_like(expected.incoherent, entries))
            assert known == NormalEquations()
            assert estimate_correlation(known) == Correlation(0.0, 0.0)
    want = ((problem.weights * POWER.sqrt()) @ R * problem.weights * POWER.sqrt()).sum(-1)
    torch.testing.assert_close(claimed_mse(problem, silent(problem), R, POWER), want.expand(BLOCKS, -1))


def test_one_device_has_nothing_to_correlate_with():
    problem = make(1, 10.0)
    problem = TransceiverProblem(
        problem.h[:, :, :1],
        torch.ones(1, 1).double(),
        problem.target_weight,
        problem.power_limit[:1],
        problem.noise,
        torch.zeros(1).double(),
    )
    alone, made = torch.zeros(1, dtype=torch.int64), DESIGNS["mmse"](problem)
    assert correlation_matrix(RHOS[2], alone, alone, False).tolist() == [[1.0]]
    expected = power_terms(problem, made, correlated_pairs(alone, alone, False), POWER[:1])
    known = normal_equations(expected, 3 * expected.incoherent, torch.full_like(expected.incoherent, 1000.0))
    assert estimate_correlation(known) == Correlation(0.0, 0.0)


def test_one_task_is_learned_from_every_slot():
    """The s-slot of one task has no pair of different tasks: its power is evidence for rho_w."""
    problem, made = designed("mmse", 1, 10.0)
    same = torch.zeros_like(TASK_OF)
    expected = power_terms(problem, made, correlated_pairs(same, same, False), POWER)
    power = expected.incoherent + 0.6 * expected.within_task
    known = normal_equations(expected, power, torch.full_like(power, 1e9))
    assert astuple(known)[2:] == (0,) * 5
    assert estimate_correlation(known).within_task == pytest.approx(0.6, abs=1e-4)


def test_one_device_a_task_still_learns_across_tasks():
    problem, made = designed("mmse", 1, 10.0)
    each = torch.arange(DEVICES)
    expected = power_terms(problem, made, correlated_pairs(each, targets_of(1), False), POWER)
    power = expected.incoherent + 0.5 * expected.between_tasks
    got = estimate_correlation(normal_equations(expected, power, torch.full_like(power, 1e9)))
    assert got.between_tasks == pytest.approx(0.5, abs=1e-4)


def test_too_much_or_too_little_power_is_clamped():
    problem, made = designed("mmse", TASKS, 10.0)
    expected = power_terms(problem, made, correlated_pairs(TASK_OF, TASK_OF, True), POWER)
    many = torch.full_like(expected.incoherent, 1e9)
    assert (
        estimate_correlation(normal_equations(expected, 100 * expected.incoherent, many)).within_task == MAX_CORRELATION
    )
    assert estimate_correlation(normal_equations(expected, 0 * expected.incoherent, many)) == Correlation(0.0, 0.0)


def test_the_terms_are_the_power_that_arrives():
    problem, made = designed("mmse", TASKS, 10.0, 0.05, "real")
    got, _ = through(problem, made, RHOS[2], "real", 5000, True)
    expected = power_terms(problem, made, correlated_pairs(TASK_OF, TASK_OF, True), POWER)
    level = (
        expected.incoherent
        + RHOS[2].within_task * expected.within_task
        + RHOS[2].between_tasks * expected.between_tasks
    )
    assert z_score(got.square(), level) < 5
    assert (expected.between_tasks == 0).all()
    assert finite(gains(problem.h, made).abs())
