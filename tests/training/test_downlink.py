"""The rounded downlink: error feedback keeps the devices' copies by the servers' parameters; state and resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed.air.quantization import bits_of, contraction, round_to_nearest
from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.core.rng import stream
from airpfed.experiment import build
from airpfed.training.checkpoint import load_state, save_state
from airpfed.training.downlink import broadcast, send
from airpfed.training.loop import play_round
from airpfed.training.state import State, vectors
from support.experiments import experiment, experiment_of

pytestmark = pytest.mark.usefixtures("shared_bases")


def entries(draw: int, scale: float = 1.0) -> torch.Tensor:
    """Entries of heavy tails, as gradients of A have: a few of a bucket are many times the others."""
    rng = stream(3, "entries", draw)
    return scale * torch.randn(1, 1100, generator=rng) * torch.randn(1, 1100, generator=rng).pow(4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_the_error_of_rounding_contracts(bits: int) -> None:
    values = entries(0)
    rounded = round_to_nearest(values, bits)
    for first in range(0, 1100, 512):
        bucket = slice(first, first + 512)
        error = (rounded - values)[:, bucket].abs().max()
        assert error <= contraction(bits) * values[:, bucket].abs().max() * (1 + 1e-5)
        assert len(rounded[:, bucket].unique()) <= 2**bits
        top = rounded[:, bucket].abs().max()
        assert bits > 4 or top == top.bfloat16(), "the scale has the 16 bits that are charged"
    assert contraction(bits) < 1 <= contraction(1)
    assert not round_to_nearest(torch.zeros(1, 5), bits).any()


@pytest.mark.parametrize("bits", [2, 4])
def test_copies_follow_with_error_feedback_and_drift_without(bits: int) -> None:
    """The law: |W_t - V_t| <= q / (1 - q) max|x| in every round. Without feedback a constant step's error adds up."""
    value, copy, alone = entries(1), entries(1), entries(1)
    largest, rounds = 0.0, 60
    step = entries(2, 0.01)
    for t in range(rounds):
        change = step + entries(10 + t, 0.001)
        value = value + change
        largest = max(largest, float(change.abs().max()))
        send(copy, value, bits)
        alone += round_to_nearest(change, bits)
        q = contraction(bits)
        assert (value - copy).abs().max() <= q / (1 - q) * largest * (1 + 1e-4)
    kept, lost = float((value - copy).norm()), float((value - alone).norm())
    assert lost > 10 * kept, "errors of all rounds add up"
    steady, moved, drift = torch.zeros_like(step), torch.zeros_like(step), torch.zeros_like(step)
    for _ in range(rounds):
        steady = steady + step
        send(moved, steady, bits)
        drift += round_to_nearest(step, bits)
    error = (round_to_nearest(step, bits) - step).norm()
    assert (drift - steady).norm() == pytest.approx(rounds * float(error), rel=1e-3)
    assert (moved - steady).abs().max() / rounds < q / (1 - q) * step.abs().max() / rounds * (1 + 1e-4), "the mean"


def rounds(made, state: State, count: int) -> State:
    for _ in range(count):
        state, _ = play_round(made, state)
    return state


def test_devices_compute_with_what_they_received(small_settings: Path, tmp_path: Path) -> None:
    made, exact = (experiment(small_settings, *overrides) for overrides in (("server.downlink_bits=4",), ()))
    assert exact.initial.server.copies is None and exact.downlink_bits is None
    first, record = play_round(made, made.initial)
    same, plain = play_round(exact, exact.initial)
    # Round 1 starts from the parameters that every device has; its broadcast is the first to be rounded.
    assert torch.equal(first.server.shared.value, same.server.shared.value)
    copies = first.server.copies
    assert copies is not None and torch.equal(vectors(first)["global"], copies.shared)
    assert not torch.equal(copies.shared, first.server.shared.value)
    change = first.server.shared.value - made.initial.server.shared.value
    q = contraction(4)
    assert (first.server.shared.value - copies.shared).abs().max() <= q * change.abs().max() * (1 + 1e-4)
    layout = made.clients.layout
    lengths = layout.size("global"), *layout.task_lengths
    assert record.ledger.downlink_bits == sum(bits_of(length, 4) for length in lengths)
    assert plain.ledger.downlink_bits == 32 * sum(lengths)
    assert record.ledger.downlink_seconds < plain.ledger.downlink_seconds / 4
    gradients = made.collect(made, first).gradients["global"]
    server = replace(
        first.server,
        shared=replace(first.server.shared, value=copies.shared),
        personal=replace(first.server.personal, value=copies.personal),
        copies=None,
    )
    moved = replace(first, server=server)
    assert torch.equal(gradients, exact.collect(exact, moved).gradients["global"])


def test_a_resumed_run_keeps_the_errors(small_settings: Path, tmp_path: Path) -> None:
    made = experiment(small_settings, "server.downlink_bits=2")
    whole, half = rounds(made, made.initial, 3), rounds(made, made.initial, 1)
    save_state(tmp_path, half, made.seed, made.fingerprint)
    resumed = rounds(made, load_state(tmp_path, made.initial, made.fingerprint), 2)
    for scope, values in vectors(whole).items():
        assert torch.equal(values, vectors(resumed)[scope])
    assert torch.equal(whole.server.shared.value, resumed.server.shared.value)


def test_only_active_columns_are_sent(small_settings: Path) -> None:
    made = experiment(small_settings, "adapters.method=rolora", "server.downlink_bits=4")
    state = made.initial
    for t in (1, 2):
        before = vectors(state)["global"]
        state, record = play_round(made, state)
        first, last = made.clients.layout.active_columns(t)
        moved = (vectors(state)["global"] != before)[0]
        assert moved[first:last].any() and not moved[:first].any() and not moved[last:].any()
        assert record.ledger.downlink_bits == bits_of(last - first, 4)


def test_where_it_is_refused(small_settings: Path) -> None:
    bits = "server.downlink_bits=4"
    with pytest.raises(UserError, match=r"server.downlink_bits = 4: the theory has no bound"):
        experiment(small_settings, bits, "theory.meter_every=1", "server.optimizer=sgd")
    settings = settings_file.read_settings(small_settings, [bits, "server.optimizer=sgd"])
    probing = build.build_experiment(settings, build.load_tasks(settings), probing=True)
    assert probing.initial.server.copies is None, "a probe's pilot rounds have an exact downlink"
    fedex = ("adapters.method=fedex", "radio.scheme=error_free", "devices.local_steps=2")
    with pytest.raises(UserError, match=r"server.downlink_bits = 4: does nothing with adapters.method"):
        settings_file.read_new_settings(small_settings, [*fedex, bits])
    assert experiment_of(settings_file.read_settings(small_settings, [*fedex, bits])).downlink_bits is None


def test_nothing_is_sent_before_anything_changed(small_settings: Path) -> None:
    made = experiment(small_settings, "server.downlink_bits=4")
    state = broadcast(replace(made.initial, round=1), made.clients.layout, 4)
    assert torch.equal(vectors(state)["global"], vectors(made.initial)["global"])
