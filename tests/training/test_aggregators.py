"""What takes the uplink's place: rules over every device's gradient, on a link without errors."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from airpfed.air.schedule import Updates
from airpfed.air.uplink import Aggregate, initial_statistics, uplink
from airpfed.config.settings_file import read_new_settings
from airpfed.core.errors import UserError
from airpfed.training.aggregators import AGGREGATORS, AggregatorRow, DeviceUpdates, Sums, trimmed_count
from support.commands import command, good
from support.experiments import experiment
from support.uplinks import everyone, gradients, make_air, means

LINK = make_air("error_free")


def played(rule: Callable[..., Sums], present: Tensor | None = None) -> Aggregate:
    """A round with a rule in place of the uplink."""
    present = everyone(LINK) if present is None else present
    aggregate = AggregatorRow(rule).build(partial(uplink, LINK), LINK, rule)
    return aggregate(3, Updates(*gradients(LINK), present), initial_statistics(LINK))


def weighted_mean(t: int, updates: DeviceUpdates) -> Sums:
    return updates.by_task(lambda rows, samples: (samples.to(rows.dtype) @ rows) / samples.sum().to(rows.dtype))


@pytest.mark.parametrize("absent", [[], [1], [0, 1], [2, 3, 4]])
def test_the_weighted_mean_as_a_rule_is_the_uplink_on_an_error_free_link(absent):
    present = everyone(LINK)
    present[absent] = False
    sent = uplink(LINK, 3, Updates(*gradients(LINK), present), initial_statistics(LINK))
    ruled = played(weighted_mean, present)
    torch.testing.assert_close(ruled.shared, sent.shared, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ruled.personal, sent.personal, rtol=1e-6, atol=1e-6)
    expected = means(LINK, *gradients(LINK), present)
    torch.testing.assert_close(ruled.shared.double(), expected[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(ruled.active_tasks, sent.active_tasks) and ruled.ledger == sent.ledger
    assert ruled.shared.dtype == sent.shared.dtype
    assert ruled.pi is None and ruled.pi_claimed is None, "a rule has no error of a sum"


def rows_of(*values: float) -> DeviceUpdates:
    """Devices with one shared entry each and twice that as the personal one; the last two are of task 1."""
    shared = torch.tensor(values)[:, None]
    task_of = torch.tensor([0] * (len(values) - 2) + [1, 1])
    return DeviceUpdates(shared, 2 * shared, torch.arange(1.0, len(values) + 1), task_of, 3)


def test_the_median_by_hand():
    shared, personal = AGGREGATORS["median"].combine(1, rows_of(5.0, -1.0, 100.0, 2.0, 3.0))
    assert shared.tolist() == [3.0]
    assert personal.flatten().tolist() == [10.0, 5.0, 0.0], "of task 1 the mean of its two; task 2 has no device"
    assert AGGREGATORS["median"].combine(1, rows_of(4.0, 1.0, 2.0, 30.0))[0].tolist() == [3.0]


def test_the_trimmed_mean_by_hand():
    updates = rows_of(5.0, -50.0, 100.0, 2.0, 3.0)
    trimmed = AGGREGATORS.bind("trimmed_mean", {"trim": 0.2})
    shared, personal = trimmed(1, updates)
    assert shared.tolist() == pytest.approx([10 / 3])
    assert personal.flatten().tolist() == pytest.approx([10.0, 5.0, 0.0]), "rounded up; two devices have no inside"
    assert AGGREGATORS.bind("trimmed_mean", {"trim": 0.4})(1, updates)[0].tolist() == [3.0]
    assert AGGREGATORS.bind("trimmed_mean", {"trim": 0.0})(1, updates)[0].tolist() == pytest.approx([12.0])
    with pytest.raises(UserError, match=r"\.trim = 0.5: should be a number at least 0 and less than 0.5"):
        AGGREGATORS.resolve("trimmed_mean", {"trim": 0.5})


WRONG: dict[str, tuple[Callable[..., object], str]] = {
    "shape": (lambda t, u: (u.shared, u.personal[:2]), r"shared should be .* of shape \(41,\), not of shape \(5, 41\)"),
    "personal": (lambda t, u: (u.shared[0], u.personal), r"personal should be .*\(2, 37\), not of shape \(5, 37\)"),
    "NaN": (lambda t, u: (u.shared[0] * torch.nan, u.personal[:2]), "shared .* not infinities or NaN"),
    "infinity": (lambda t, u: (u.shared[0], u.personal[:2] / 0), "personal .* not infinities or NaN"),
    "whole numbers": (lambda t, u: (u.shared[0].long(), u.personal[:2]), "shared .* not int64"),
    "complex": (lambda t, u: (u.shared[0] + 0j, u.personal[:2]), "shared .* not complex64"),
    "list": (lambda t, u: (u.shared[0].tolist(), u.personal[:2]), "shared .* not list"),
    "alone": (lambda t, u: u.shared[0], r"should give \(shared, personal\), not Tensor"),
    "nothing": (lambda t, u: None, r"should give \(shared, personal\), not NoneType"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_rule_that_gives_something_else_is_one_line(fault):
    rule, words = WRONG[fault]
    with pytest.raises(UserError, match=f"^server.aggregator: {words}") as caught:
        played(rule)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_any_device_no_rule_is_asked():
    def never(t: int, updates: DeviceUpdates) -> Sums:
        raise AssertionError

    ruled = played(never, torch.zeros(5, dtype=torch.bool))
    assert not ruled.active_tasks.any() and not ruled.shared.any() and not ruled.personal.any()


def test_a_rule_reads_only_devices_that_are_present_with_their_data():
    seen: list[DeviceUpdates] = []
    present = torch.tensor([True, False, True, True, False])
    played(lambda t, u: seen.append(u) or weighted_mean(t, u), present)  # type: ignore[func-returns-value]
    assert seen[0].samples.tolist() == [3.0, 4.0, 6.0] and seen[0].task_of.tolist() == [0, 1, 1]
    assert torch.equal(seen[0].shared, gradients(LINK)[0][present]) and seen[0].num_tasks == 2


def test_a_rule_needs_every_gradient(small_settings: Path):
    with pytest.raises(UserError, match=r'server.aggregator = "median": takes the uplink\'s place .* "error_free"'):
        read_new_settings(small_settings, ["server.aggregator=median"])


@pytest.mark.parametrize("rule", ["median", "trimmed_mean(trim=0.3)"])
def test_a_run_with_a_rule_trains(rule, small_settings: Path, tmp_path: Path, shared_bases: None):
    """On an error-free link; the model is another than with the mean."""
    words = ["--set", "radio.scheme=error_free", "--set", "server.rounds=2", "--set", "tasks.*.test_samples=4"]
    names = ("mean", "rule")
    for name, more in zip(names, ([], ["--set", f"server.aggregator={rule}"]), strict=True):
        good(command("run", small_settings, *words, *more, "--out", tmp_path / name))
    adapters = [(tmp_path / name / "adapters/colours/adapter_model.safetensors").read_bytes() for name in names]
    assert adapters[0] != adapters[1]


def test_the_uplink_is_the_default(small_settings: Path, shared_bases: None):
    made = experiment(small_settings, "radio.scheme=error_free")
    assert isinstance(made.aggregate, partial) and made.aggregate.func is uplink


@pytest.mark.parametrize(
    ("trim", "devices", "cut"), [(0.1, 4, 1), (0.1, 2, 0), (0.1, 20, 2), (0.3, 10, 3), (0.0, 9, 0)]
)
def test_trimmed_count_is_what_trimmed_mean_leaves_out(trim, devices, cut):
    assert trimmed_count(trim, devices) == cut
