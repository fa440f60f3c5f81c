"""Seconds and joules of computing, devices that are late, and the budgets of time that count them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, RoundRecord
from airpfed.devices.clients import draw_batches
from airpfed.devices.compute import ComputeModel
from airpfed.devices.flops import count_sample_flops
from airpfed.experiment import build
from airpfed.training.loop import has_round_left, play_round
from airpfed.training.setup import TrainingSetup
from support.experiments import experiment, experiment_of

pytestmark = pytest.mark.usefixtures("shared_bases")


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_cost_by_hand() -> None:
    """8e9 operations are 2e9 cycles: 2 s at 1 GHz, 1 s at 2 GHz; a cycle takes 1e-10 J and 4e-10 J."""
    model = ComputeModel(doubles(1e9, 2e9, 2e9), 0.25, 1e-28)
    got = model.cost(doubles(8e9, 8e9, 4e9), torch.tensor([True, True, True]))
    assert got.compute_seconds == got.total_seconds == pytest.approx(2.0)
    assert got.compute_joules == got.total_joules_mean == pytest.approx((0.2 + 0.8 + 0.4) / 3)
    assert got.total_joules_max == pytest.approx(0.8) and got.air_seconds == got.downlink_seconds == 0
    absent = model.cost(doubles(8e9, 8e9, 4e9), torch.tensor([False, True, True]))
    assert absent.compute_seconds == pytest.approx(1.0), "nobody waits for an absent device"
    assert absent.compute_joules == got.compute_joules, "which has computed all the same"
    assert model.cost(doubles(0, 0, 0), torch.zeros(3, dtype=torch.bool)).compute_seconds == 0


def test_a_late_device_computes_until_the_deadline() -> None:
    model = ComputeModel(doubles(1e9, 2e9, 2e9), 0.25, 1e-28, deadline=1.5)
    flops = doubles(8e9, 8e9, 4e9)
    assert model.is_late(flops).tolist() == [True, False, False]
    got = model.cost(flops, ~model.is_late(flops))
    assert got.compute_seconds == 1.5, "the server does not know before that the first one is late"
    assert got.compute_joules == pytest.approx((0.15 + 0.8 + 0.4) / 3)
    assert not model.is_late(doubles(6e9, 0, 0)).any(), "just in time"


def test_the_first_epoch_pays_for_the_prefix(small_settings: Path) -> None:
    made = experiment(small_settings, "adapters.layers=last-1", "devices.batch_size=3", "tasks.*.samples_per_device=5")
    clients, compute, count = made.clients, made.compute, count_sample_flops(made.clients)
    assert compute is not None and count.prefix_token > 0
    devices = range(len(clients.shards))
    cursors = torch.tensor([0, *[3] * (len(devices) - 1)])
    plan, _ = draw_batches(clients, cursors, 3, 1)
    got = compute.flops(clients, cursors.tolist(), plan)
    for k in devices:
        samples = [clients.shards[k][i] for i in plan[k][0]]
        news = [True] * 3 if k == 0 else [True, True, False]  # of five samples two are new
        expected = sum(
            count.total(len(sample.ids), len(sample.targets), new) for sample, new in zip(samples, news, strict=True)
        )
        assert float(got[k]) == pytest.approx(expected, abs=1)


def test_a_round_has_the_whole_ledger(small_settings: Path) -> None:
    made = experiment(small_settings, "devices.hertz=1e6", "devices.local_steps=2", "devices.local_lr=0.01")
    _, record = play_round(made, made.initial)
    clients, cost = made.clients, record.ledger
    plan, _ = draw_batches(clients, made.initial.devices.cursors, made.local_training.batch_size, 2)
    flops = made.compute.flops(clients, made.initial.devices.cursors.tolist(), plan)
    assert cost.compute_seconds == pytest.approx(0.125 * float(flops.max()) / 1e6)
    assert cost.compute_joules == pytest.approx(1e-28 * 1e12 * 0.125 * float(flops.mean()))
    assert cost.total_seconds == pytest.approx(cost.air_seconds + cost.downlink_seconds + cost.compute_seconds)
    parts = cost.radiated_joules + cost.amplifier_joules + cost.circuit_joules + cost.compute_joules
    assert cost.total_joules_mean == pytest.approx(parts) and cost.total_joules_max >= cost.total_joules_mean
    assert cost.amplifier_joules == pytest.approx(cost.radiated_joules * (1 / 0.35 - 1))
    assert cost.radiated_joules > cost.joules_mean > 0


def test_a_slow_device_is_absent_as_one_without_a_gradient(small_settings: Path) -> None:
    hertz = "devices.hertz=[2e9,2e9,1e6,2e9,2e9]"
    late = experiment(small_settings, hertz, "server.deadline_seconds=0.01")
    state, record = play_round(late, late.initial)
    assert record.absent == record.late == [2] and record.ledger.compute_seconds == 0.01

    def without(made: TrainingSetup, state):
        devices = type(made).__dataclass_fields__["collect"].default_factory()(made, state)
        for rows in devices.gradients.values():
            rows[2] = torch.nan
        return devices

    broken = experiment(small_settings, hertz)
    other, expected = play_round(replace(broken, collect=without), broken.initial)
    assert expected.absent == [2] and expected.late == []
    assert torch.equal(state.server.shared.value, other.server.shared.value)
    assert torch.equal(state.server.personal.value, other.server.personal.value)
    assert record.loss == expected.loss and record.ledger.air_seconds == expected.ledger.air_seconds
    with pytest.raises(UserError, match=r"server.deadline_seconds = 1e-12: every device computes longer in round 1"):
        made = experiment(small_settings, "server.deadline_seconds=1e-12")
        play_round(made, made.initial)


def test_frequencies_are_one_or_one_a_device(small_settings: Path) -> None:
    for value, message in (
        ("[1e9,2e9]", "devices.hertz has 2 values: should be one, or 5"),
        ("[1e9,2e9,0.5,1e9,1e9]", "hertz = 0.5: should be from 1 to 1e15"),
        ("0", "hertz = 0: should be from 1 to 1e15"),
    ):
        with pytest.raises(UserError, match=message.replace("[", r"\[")):
            settings_file.read_settings(small_settings, [f"devices.hertz={value}"])


def records(*ledgers: Ledger) -> list[RoundRecord]:
    empty = {"loss": {}, "mse": {}, "pi": None, "pi_claimed": None, "seconds": {}}
    return [RoundRecord(round=t, ledger=ledger, **empty) for t, ledger in enumerate(ledgers, 1)]


def test_budgets_of_time(small_settings: Path) -> None:
    """A round of 1 s up, 3 s down and 6 s of computing; the next counts as the longest so far."""
    made = replace(experiment(small_settings), rounds=9)
    row = Ledger(air_seconds=1, downlink_seconds=3, compute_seconds=6, total_seconds=10)
    two = records(row, row)
    assert has_round_left(made, two)
    for changes, enough, short in (
        ({}, 3.0, 2.9),
        ({"air_seconds_of": "uplink"}, 3.0, 2.9),
        ({"air_seconds_of": "both"}, 12.0, 11.9),
    ):
        assert has_round_left(replace(made, air_seconds=enough, **changes), two)
        assert not has_round_left(replace(made, air_seconds=short, **changes), two)
    assert has_round_left(replace(made, seconds=30.0), two) and not has_round_left(replace(made, seconds=29.9), two)
    assert not has_round_left(replace(made, seconds=99.0, air_seconds=2.0), two), "each budget counts"


def test_the_settings_reach_the_ledger(small_settings: Path) -> None:
    overrides = ("radio.station_power_dbm=30", "devices.amplifier_efficiency=0.5", "devices.circuit_watts=0.25")
    file = settings_file.read_settings(small_settings, [*overrides, "devices.kappa=1e-27", "devices.cycles_per_flop=2"])
    made = experiment_of(file)
    link = build.client_uplink(file, made.clients)
    assert link.station_power == pytest.approx(1.0)
    assert (link.amplifier_efficiency, link.circuit_watts, link.downlink_bits) == (0.5, 0.25, None)
    assert (made.compute.kappa, made.compute.cycles_per_flop, made.compute.deadline) == (1e-27, 2, None)
    default = settings_file.read_settings(small_settings)
    assert build.client_uplink(default, made.clients).station_power is None


def test_records_of_older_runs_are_read() -> None:
    (row,) = records(Ledger())
    tree = row.model_dump(mode="json")
    new = ("downlink_seconds", "compute_seconds", "total_seconds", "radiated_joules", "amplifier_joules")
    new += ("circuit_joules", "compute_joules", "total_joules_mean", "total_joules_max")
    tree["ledger"] = {key: value for key, value in tree["ledger"].items() if key not in new}
    del tree["late"]
    assert RoundRecord.model_validate(tree) == row
