"""Every bound on problems whose constants are known; each planted fault fails the check that is named beside it."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airpfed.core.run_files import Constants
from airpfed.theory import bounds
from support.theory_faults import FAULTS, modules
from support.toy_problems import Round, Shape, play, toy

Z = 5


def at_most(values: torch.Tensor, limit: float, what: str, rounding: float = 1e-9) -> float:
    """The mean of the draws is not above the limit by more than 5 standard errors; returns limit / mean."""
    mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
    room = Z * error + rounding * (abs(mean) + abs(limit))
    assert mean <= limit + room, (
        f"{what}: {mean:.6g} above {limit:.6g} by {(mean - limit) / max(error, 1e-300):.1f} errors"
    )
    return limit / mean if mean else float("inf")


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """N, K, D_k, ranks, noise of gradients and channel, lambda."""
    devices = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    samples = tuple(draw(st.lists(st.integers(1, 9), min_size=sum(devices), max_size=sum(devices))))
    ranks = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)).filter(any))
    level = st.sampled_from([0.0, 0.1, 1.0, 10.0])
    return Shape(
        devices, samples, ranks, c=draw(st.sampled_from([0.0, 0.5, 2.0])), sgd=draw(level), channel=draw(level),
        lam=draw(st.sampled_from([1.0, 1.5, 4.0])), seed=draw(st.integers(0, 2**16)),
    )  # fmt: skip


def channel_of(one: Round, lib: SimpleNamespace) -> float:
    return lib.account.error_energy(one.mse, one.shares, "claimed")


def descent(one: Round, lib: SimpleNamespace) -> dict[str, float]:
    """(38): every draw, no expectation."""
    limit = one.first + one.constants.beta / 2 * one.length
    room = 1e-9 * (1 + limit.abs() + one.change.abs())
    assert (one.change <= limit + room).all(), "(38)"
    return {"(38)": float((limit / one.change).median())}


def lemma_1(one: Round, lib: SimpleNamespace) -> dict[str, float]:
    """(39) in both readings of X."""
    return {
        f"(39) X {name}": at_most(one.first, lib.bound.first_order(one.eta, one.gradient, x), "(39)")
        for name, x in (("Lambda", one.gradient), ("printed", one.printed))
    }


def as_printed(constants: Constants) -> Constants:
    return constants.model_copy(update={"lam": constants.lam_printed, "sigma_dif2": constants.sigma_dif2_printed})


def lemma_2(one: Round, lib: SimpleNamespace) -> dict[str, float]:
    """(40) with its beta/2, in both readings."""
    second, channel = one.constants.beta / 2 * one.length, channel_of(one, lib)
    return {
        f"(40) X {name}": at_most(second, lib.bound.second_order(one.eta, constants, x, channel), "(40)")
        for name, constants, x in (
            ("Lambda", one.constants, one.gradient),
            ("printed", as_printed(one.constants), one.printed),
        )
    }


def theorem(one: Round, lib: SimpleNamespace) -> dict[str, float]:
    """(41) in both readings, and ours."""
    channel, eta = channel_of(one, lib), one.eta
    return {
        "(41)": at_most(one.change, lib.bound.one_round(eta, one.constants, one.gradient, channel), "(41)"),
        "(41) printed": at_most(
            one.change, lib.bound.one_round(eta, as_printed(one.constants), one.gradient, channel), "(41) as printed"
        ),
        **ours(one, lib),
    }


def ours(one: Round, lib: SimpleNamespace) -> dict[str, float]:
    """Our bound, which biased aggregates keep too."""
    limit = lib.bound.one_round_ours(one.eta, one.constants, one.gradient, channel_of(one, lib))
    return {"ours": at_most(one.change, limit, "ours")}


CHECKS: dict[str, Callable[[Round, SimpleNamespace], dict[str, float]]] = {
    "(38)": descent, "(39)": lemma_1, "(40)": lemma_2, "(41)": theorem,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["quadratic", "bilinear"])
@pytest.mark.parametrize("check", CHECKS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=shapes())
def test_the_bounds_hold_on_problems_with_known_constants(check: str, kind: str, shape: Shape) -> None:
    lib = modules()
    ratios = CHECKS[check](play(toy(shape, kind), lib), lib)
    print(kind, *(f"{name} {value:.3g}" for name, value in ratios.items()))


@pytest.mark.parametrize("kind", ["quadratic", "bilinear"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=shapes(), spread=st.floats(0.0, 0.5), step=st.sampled_from([0.01, 0.3, 1.0]))
def test_our_bound_holds_for_biased_sums(kind: str, shape: Shape, spread: float, step: float) -> None:
    rng = torch.Generator().manual_seed(shape.seed)
    gains = 0.4 + spread * (2 * torch.rand(sum(shape.devices), generator=rng, dtype=torch.float64) - 1)
    lib = modules()
    print(kind, ours(play(toy(shape, kind), lib, gains, step), lib))


TIGHT = Shape((2,), (3, 3), (1, 1), c=0.5, sgd=1.0, channel=0.3, lam=1.0, seed=3)
"""Little room in any inequality: one task."""
SHRUNK = Shape((2, 1), (1, 5, 3), (1, 2), c=0.0, sgd=0.0, channel=0.0, lam=1.0, seed=5)
UNEQUAL = Shape((2, 2), (1, 7, 2, 3), (2, 1), c=0.0, sgd=0.01, channel=1.0, lam=1.0, seed=7)
ALONE = Shape((1,), (4,), (2, 1), c=0.5, sgd=1.0, channel=0.0, lam=1.0, seed=9)
"""One device: Jensen loses nothing, (40) is an equality."""


def biased_case(lib: SimpleNamespace) -> None:
    ours(play(toy(SHRUNK, "quadratic"), lib, torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64), 0.05), lib)


def descent_case(lib: SimpleNamespace) -> None:
    descent(play(toy(TIGHT, "quadratic"), lib, step=0.01), lib)


def second_case(lib: SimpleNamespace) -> None:
    lemma_2(play(toy(ALONE, "quadratic"), lib), lib)


def channel_case(lib: SimpleNamespace) -> None:
    lemma_2(play(toy(UNEQUAL, "quadratic"), lib), lib)


CAUGHT = {
    "(40) without beta/2": second_case,
    "cross term with the bias dropped": biased_case,
    "D_n/D for D_k/D_n": descent_case,
    "R_s and R_p swapped": channel_case,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_its_check(fault: str) -> None:
    """The code as it is passes; with one line of it changed the same check fails."""
    CAUGHT[fault](modules())
    with pytest.raises(AssertionError, match=r"above|38"):
        CAUGHT[fault](modules(fault))


def test_41_needs_an_unbiased_sum() -> None:
    """Where a design shrinks to a fifth, (41) is violated at a small step: it does not apply, and ours does."""
    lib = modules()
    one = play(toy(SHRUNK, "quadratic"), lib, torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64), 0.05)
    with pytest.raises(AssertionError, match=r"\(41\)"):
        at_most(one.change, bounds.one_round(one.eta, one.constants, one.gradient, 0.0), "(41)")
    ours(one, lib)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    beta=st.floats(0.1, 50), c=st.floats(0, 3), sgd=st.floats(0, 5), lam=st.floats(1, 3), dif=st.floats(0, 5),
    gradient=st.floats(0.01, 5), channel=st.floats(0, 5), step=st.floats(0.01, 1.0),
)  # fmt: skip
def test_the_bounds_follow_from_each_other(
    beta: float, c: float, sgd: float, lam: float, dif: float, gradient: float, channel: float, step: float
) -> None:
    """Ours <= (39) + (40) <= (41) up to the rule's step; (43) at the rule's step as printed; summed it is (43)."""
    k = Constants(beta=beta, c=c, sigma_sgd2=sgd, lam=lam, sigma_dif2=dif, lam_printed=lam, sigma_dif2_printed=dif)
    eta = step * bounds.step_size(k)
    lemmas = bounds.first_order(eta, gradient, gradient) + bounds.second_order(eta, k, gradient, channel)
    near = 1e-9 * (1 + abs(lemmas))
    assert bounds.one_round_ours(eta, k, gradient, channel) <= lemmas + near
    assert lemmas <= bounds.one_round(eta, k, gradient, channel) + near
    rule = bounds.step_size(k)
    psi = bounds.average_bound(rule, k, 2.0, 7, channel)
    printed = 2 * 2.0 / (rule * 7) + sgd / (lam * (c + 1)) + dif / lam + channel / (lam * (c + 1))
    assert psi.total == pytest.approx(printed) and sum(psi.shares.values()) == pytest.approx(1)
    # Lambda at which (41), summed over 7 rounds, just spends the gap
    rounds = 7 * bounds.one_round(eta, k, bounds.average_bound(eta, k, 2.0, 7, channel).total, channel)
    assert rounds == pytest.approx(-2.0, rel=1e-6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    gain=st.floats(0.2, 1.2), rho=st.floats(0, 0.5), sgd=st.floats(0, 5), c=st.floats(0, 1), dif=st.floats(0, 2),
    omega=st.floats(0.05, 1), channel=st.floats(0, 5), gradient=st.floats(1e-3, 50), step=st.floats(0.01, 1.0),
)  # fmt: skip
def test_psi_of_ours_sums_our_bound(
    gain: float, rho: float, sgd: float, c: float, dif: float, omega: float, channel: float, gradient: float,
    step: float,
) -> None:  # fmt: skip
    """If every Lambda_t were above Psi_T, our one-round bound would spend more than the gap: so their mean is not."""
    k = Constants(
        beta=2.0, c=c, sigma_sgd2=sgd, lam=1.0, sigma_dif2=dif, lam_printed=1.0, sigma_dif2_printed=dif,
        largest=omega, gain=gain, deviation=rho,
    )  # fmt: skip
    eta = step * bounds.step_size(k)
    psi = bounds.average_bound_ours(eta, k, 2.0, 7, channel)
    if psi is None:
        assert rho > 0 or step * gain > 0.5
        return
    spent = 7 * bounds.one_round_ours(eta, k, psi.total + gradient, channel)
    assert spent <= -2.0 + 1e-9, "a mean above Psi_T cannot be"
    assert gain > 1 or psi.channel >= -1e-12, "a gain above 1 can outweigh what the channel adds"
    assert sum(psi.shares.values()) == pytest.approx(1)
    if rho == 0 and channel == 0 and gain == 1:
        assert psi.channel == pytest.approx(0)


@pytest.mark.parametrize("step", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_our_bound_holds_where_the_error_lies_along_the_gradient(step: float, side: float) -> None:
    """F = beta/2 x^2 and Ghat = (c + side rho) G: each side attains one term of the bound, large steps the second."""
    beta, gain, rho, gradient = 2.0, 0.9, 0.5, 3.0
    k = Constants(
        beta=beta, c=0, sigma_sgd2=0, lam=1, sigma_dif2=0, lam_printed=1, sigma_dif2_printed=0, gain=gain, deviation=rho
    )
    eta = step / beta
    received = (gain + side * rho) * gradient
    change = -eta * gradient * received + beta / 2 * eta**2 * received**2
    assert change <= bounds.one_round_ours(eta, k, gradient**2, 0.0) + 1e-12
