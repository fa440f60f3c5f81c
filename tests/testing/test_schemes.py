"""The contract of schemes: our rows keep it, and a scheme of a user that breaks it is told how."""

from dataclasses import replace

import pytest
import torch

from airpfed import testing
from airpfed.air.digital import send_quantised
from airpfed.air.schemes import SCHEMES, Scheme, exact_sums
from airpfed.core.rng import stream
from airpfed.core.run_files import Ledger
from support.single_thread import one_thread  # noqa: F401

OPTIONS = [(name, {}) for name in SCHEMES] + [("digital", {"bits": 1, "access": "spatial"})]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_our_schemes_keep_the_contract(name, options):
    report = testing.check_scheme(name, **options)
    assert report.ok, str(report)


def noisy(link, slot, t, *, share: float = 0.1):
    """Exact sums with Gaussian noise of a share of their energy, as a user would write it."""
    exact = exact_sums(link, slot, t)
    rng = stream(link.seed, "mine", t, slot.name)
    deviation = share * slot.vectors[slice(None)].double().square().mean().sqrt()
    noise = deviation * torch.randn(exact.sums.shape, dtype=torch.float64, generator=rng)
    d = exact.sums.shape[1]
    energy = deviation.square() * d * torch.ones(len(exact.sums), dtype=torch.float64)
    sums = (exact.sums.double() + noise).to(exact.sums.dtype)
    errors = replace(
        exact.errors,
        claimed=energy,
        claimed_genie=energy,
        variance=energy,
        measured=(sums.double() - exact.sums.double()).square().sum(1),
    )
    return replace(exact, sums=sums, errors=errors)


def test_a_users_function():
    report = testing.check_scheme(Scheme(noisy, "given the channel", knowledge="none"), share=0.2)
    assert report.ok, str(report)
    assert str(report).startswith("scheme noisy(share=0.2): all 12 checks pass")


def shrinks(link, slot, t):
    received = noisy(link, slot, t)
    return replace(received, sums=0.9 * received.sums)


def claims_too_little(link, slot, t):
    received = noisy(link, slot, t)
    return replace(received, errors=replace(received.errors, claimed=0.5 * received.errors.claimed))


def claims_to_be_exact(link, slot, t):
    received = noisy(link, slot, t)
    return replace(received, errors=replace(received.errors, claimed=0.0 * received.errors.claimed))


def measures_too_little(link, slot, t):
    received = noisy(link, slot, t)
    return replace(received, errors=replace(received.errors, measured=0.5 * received.errors.measured))


def reads_the_estimates(link, slot, t):
    """Weak devices, as the estimates tell them, are left out."""
    h_est, _ = link.channels(t, 1)
    strong = h_est[0].abs().square().sum(0) > 8e-10
    return exact_sums(link, replace(slot, weights=slot.weights * strong[slot.devices]), t)


def reads_the_gains(link, slot, t):
    return exact_sums(link, replace(slot, weights=slot.weights * (link.network.gain[0, slot.devices] < 2e-10)), t)


def global_generator(link, slot, t):
    exact = exact_sums(link, slot, t)
    return replace(exact, sums=exact.sums + 1e-3 * torch.randn(exact.sums.shape))


def reads_absent_devices(link, slot, t):
    exact = exact_sums(link, slot, t)
    everyone = slot.vectors.parts[0][0]
    return replace(exact, sums=exact.sums + 0.0 * everyone.sum())


def divides_by_the_power(link, slot, t):
    exact = exact_sums(link, slot, t)
    size = slot.vectors[slice(None)].norm()
    return replace(exact, sums=exact.sums / size * size)


def one_sum_too_few(link, slot, t):
    exact = exact_sums(link, slot, t)
    return replace(exact, sums=exact.sums[:1])


def shouts(link, slot, t):
    received = exact_sums(link, slot, t)
    return replace(received, joules=torch.full_like(received.joules, 1.0))


def in_place(link, slot, t):
    for part, _ in slot.vectors.parts:
        part.mul_(2.0)
    return exact_sums(link, slot, t)


@pytest.mark.parametrize(
    ("scheme", "check", "words"),
    [
        (Scheme(shrinks, "given the channel"), "unbiased as claimed", "0.8979 times the exact sum"),
        (Scheme(shrinks, "over fading"), "unbiased as claimed", 'claims unbiased = "over fading"'),
        (claims_too_little, "error as claimed", "2.0"),
        (claims_to_be_exact, "error as claimed", "the claimed error is 0"),
        (measures_too_little, "error as recorded", "the sums are off by"),
        (Scheme(reads_the_estimates, knowledge="slow"), "knowledge as declared", "other channel estimates"),
        (Scheme(reads_the_estimates, knowledge="none"), "knowledge as declared", 'declares knowledge = "none"'),
        (Scheme(reads_the_gains, knowledge="none"), "knowledge as declared", "other mean gains"),
        (global_generator, "deterministic", "draw from airpfed.core.rng.stream"),
        (reads_absent_devices, "absent devices", "absent devices"),
        (divides_by_the_power, "finite", "gradients of 0: "),
        (one_sum_too_few, "sends every slot", "sums has shape (1, 37); should be (2, 37)"),
        (shouts, "power limit", "times what the largest power limit allows"),
        (in_place, "gradients are not changed", "in place"),
        (Scheme(send_quantised, "given the channel", lambda *args, **options: Ledger()), "ledger", "is 0 although"),
        (Scheme(exact_sums, "yes"), "declarations", "unbiased is 'yes'; should be one of 'given the channel'"),  # type: ignore[arg-type]
        (Scheme(exact_sums, knowledge="all"), "declarations", "knowledge is 'all'"),  # type: ignore[arg-type]
    ],
    ids=lambda value: getattr(getattr(value, "send", value), "__name__", None),
)
def test_a_planted_fault_is_named(scheme, check, words):
    report = testing.check_scheme(scheme)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]


def test_a_scheme_that_knows_mean_gains_may_use_them():
    report = testing.check_scheme(Scheme(reads_the_gains, knowledge="slow"))
    assert "knowledge as declared" not in {result.name for result in report.failures}
