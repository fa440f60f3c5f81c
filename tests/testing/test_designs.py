"""The contract of designs: our rows keep it, and a design of a user that breaks it is told how."""

import sys
from dataclasses import replace

import pytest
import torch

from airpfed import testing
from airpfed.air.designs import DESIGNS, Design
from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.designs.inversion import channel_inversion
from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.core.errors import UserError
from support.single_thread import one_thread  # noqa: F401


@pytest.mark.parametrize("name", DESIGNS)
def test_our_designs_keep_the_contract(name):
    report = testing.check_design(name)
    assert report.ok, str(report)


def inversion(problem: TransceiverProblem, *, truncation: float = 0.3) -> Transceiver:
    """Truncated channel inversion with a fixed threshold."""
    return channel_inversion(problem, truncation=truncation)


def test_a_users_function_with_options():
    report = testing.check_design(inversion, truncation=0.5)
    assert report.ok, str(report)
    assert str(report).startswith("design inversion(truncation=0.5): all ")
    report.raise_if_failed()


def scaled_factors(problem):
    transceiver = inversion(problem)
    return replace(transceiver, transmit_factors=1.01**0.5 * transceiver.transmit_factors)


def batch_threshold(problem):
    """Devices are silent where their channel is weak beside those of all blocks."""
    weak = problem.h.abs().square().sum(1) < 0.05 * problem.h.abs().square().sum(1).mean()
    return inversion(replace(problem, h=torch.where(weak[:, None, :], 0.0, problem.h)))


def fixed_regulariser(problem):
    """A number in watts where the problem's own scale belongs."""
    h, w = problem.h, problem.weights.sum(-2)
    beam = torch.linalg.eigh(h @ h.mH).eigenvectors[..., -1]
    a = (beam.conj()[:, None] @ h)[:, 0] * (w > 0)
    b = a.conj() / a.abs().clamp_min(1e-30) * problem.power_limit.sqrt()
    if problem.device_of_stream is not None:
        b = b / 2**0.5
    gain = (a * b).real.sum(-1, keepdim=True) / (1e-12 + (a * b).abs().square().sum(-1, keepdim=True))
    return Transceiver((beam * gain)[..., None].expand(-1, -1, len(problem.weights)).clone(), b, 0)


def divides_by_the_channel(problem):
    transceiver = inversion(problem)
    size = problem.h.abs().square().sum(1)
    return replace(transceiver, transmit_factors=transceiver.transmit_factors * size / size)


def at_random(problem):
    transceiver = inversion(problem)
    phase = torch.polar(torch.ones(1, dtype=torch.float64), torch.rand(1, dtype=torch.float64))
    return replace(transceiver, transmit_factors=transceiver.transmit_factors * phase)


def reads_the_true_channels(problem):
    """Takes the channels behind the estimates from whoever calls it."""
    frame = sys._getframe()
    while frame is not None:
        for segment in frame.f_locals.get("segments", []):
            if hasattr(segment, "problem") and segment.problem is problem:
                problem = replace(problem, h=segment.h)
        frame = frame.f_back
    return inversion(problem)


last: list[torch.Tensor] = []


def remembers(problem):
    """Begins from the receiver of the problem before."""
    transceiver = inversion(problem)
    factor = 0.5 if last and last[-1].shape == problem.h.shape else 1.0
    last.append(problem.h)
    return replace(transceiver, transmit_factors=factor * transceiver.transmit_factors)


def by_position(problem):
    """Only the first half of the streams sends."""
    transceiver = inversion(problem)
    first = torch.arange(problem.h.shape[-1]) < (problem.h.shape[-1] + 1) // 2
    return replace(transceiver, transmit_factors=transceiver.transmit_factors * first)


def in_place(problem):
    problem.h.mul_(problem.power_limit.sqrt() * 3.0)
    return inversion(problem)


def everyone_sends(problem):
    transceiver = inversion(problem)
    idle = (problem.weights <= 0).all(-2)
    return replace(
        transceiver,
        transmit_factors=torch.where(idle, 0.1 * problem.power_limit.sqrt(), transceiver.transmit_factors.real)
        + 1j * torch.where(idle, 0.0, transceiver.transmit_factors.imag),
    )


def first_weights(problem):
    """Weights of the first block for all blocks."""
    return uniform_forcing(
        replace(problem, weights=problem.weights[0] if problem.weights.dim() == 3 else problem.weights)
    )


def all_antennas(problem):
    return inversion(replace(problem, antenna_mask=None))


def single_precision(problem):
    transceiver = inversion(problem)
    return replace(transceiver, receiver=transceiver.receiver.to(torch.complex64))


def one_receiver(problem):
    transceiver = inversion(problem)
    return replace(transceiver, receiver=transceiver.receiver[..., :1])


def raises_without_noise(problem):
    return inversion(replace(problem, noise=1.0 / problem.noise * problem.noise**2))


@pytest.mark.parametrize(
    ("design", "check", "words"),
    [
        (scaled_factors, "power limit", "sends 1.01 times the power limit"),
        (batch_threshold, "a block by itself", "beside blocks of stronger channels"),
        (fixed_regulariser, "units", "with power in units 1000 times as small"),
        (divides_by_the_channel, "finite", '"dead channels": '),
        (at_random, "deterministic", "neither random nor remember"),
        (remembers, "deterministic", "neither random nor remember"),
        (reads_the_true_channels, "only the problem is read", "true channels"),
        (by_position, "order of devices", "another order"),
        (in_place, "problem is not changed", '"one target": '),
        (everyone_sends, "silent without a weight", "whose weight is 0"),
        (all_antennas, "antennas of each receiver", "antenna_mask"),
        (single_precision, "solves every problem", "complex64; should be"),
        (one_receiver, "solves every problem", "receiver is (3, 8, 1)"),
        (raises_without_noise, "solves every problem", "ZeroDivisionError"),
        (Design(inversion, unbiased="given the channel"), "unbiased as claimed", "arrives with 0 of its weight"),
        (Design(inversion, unbiased="over fading"), "unbiased as claimed", "standard errors off"),
        (Design(uniform_forcing, shrinks=True), "no worse than silence", "times that of silence"),
        (Design(first_weights, batched=True), "weights that differ by block", "alone with its weights"),
        (Design(inversion, batched=True), "weights that differ by block", "raises "),
        (Design(inversion, unbiased="given fading"), "declarations", "unbiased is 'given fading'; should be one of"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_named(design, check, words):
    report = testing.check_design(design)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]
    assert not report.ok
    with pytest.raises(AssertionError, match="breaks its contract") as raised:
        report.raise_if_failed()
    assert f"  {check}: {failures[check]}" in str(raised.value).splitlines()


def test_the_fault_is_the_only_one_that_is_named():
    assert [result.name for result in testing.check_design(scaled_factors).failures] == ["power limit"]
    assert [result.name for result in testing.check_design(reads_the_true_channels).failures] == [
        "only the problem is read"
    ]


def test_a_function_that_can_be_no_row_is_refused():
    with pytest.raises(UserError, match="design hides: \\*\\*options hides the options"):

        def hides(problem, **options): ...

        testing.check_design(hides)
    with pytest.raises(UserError, match="truncation = 2"):
        testing.check_design("channel_inversion", truncation=2.0)
    with pytest.raises(UserError, match="should be one of"):
        testing.check_design("mmsee")


def test_the_lower_bound_is_checked(monkeypatch):
    """Nothing within the limits can be below the bound; a bound that is too high shows that the check looks."""
    from airpfed.testing import designs

    bounds = {name: 10 * bound for name, bound in designs.bounds().items()}
    monkeypatch.setattr(designs, "bounds", lambda: bounds)
    assert [result.name for result in testing.check_design(inversion).failures] == ["lower bound"]


def test_the_claimed_error_is_checked(monkeypatch):
    """A slip of 5 % in the claim is seen in the draws."""
    from airpfed.testing import designs

    monkeypatch.setattr(designs, "mse", lambda *args, mse=designs.mse: 0.95 * mse(*args))
    assert [result.name for result in testing.check_design(inversion).failures] == ["error as claimed"]
