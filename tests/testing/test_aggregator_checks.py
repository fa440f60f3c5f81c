"""The contract of aggregators: our rows keep it, and an aggregator of a user that breaks it is told how."""

from dataclasses import dataclass, replace

import pytest
import torch

from airpfed import testing
from airpfed.air.schedule import Updates
from airpfed.training.aggregators import AGGREGATORS, AggregatorRow


@pytest.mark.parametrize("name", AGGREGATORS)
def test_our_aggregators_keep_the_contract(name):
    report = testing.check_aggregator(name)
    assert report.ok, str(report)


def plain_mean(t, updates, *, power: float = 1.0):
    """The mean with weights D_k^power, as a user would write it."""

    def combine(gradients, samples):
        weights = samples**power
        return (weights / weights.sum()).to(gradients.dtype) @ gradients

    return updates.by_task(combine)


def test_a_users_function():
    report = testing.check_aggregator(plain_mean, power=0.5)
    assert report.ok, str(report)
    assert str(report).startswith("aggregator plain_mean(power=0.5): all 7 checks pass")


def plain_sum(t, updates):
    return updates.by_task(lambda gradients, samples: gradients.sum(0))


def first_device(t, updates):
    return updates.by_task(lambda gradients, samples: gradients[0])


def mixes_tasks(t, updates):
    shared, personal = plain_mean(t, updates)
    return shared, 0.9 * personal + 0.1 * personal.mean(0)


def shares_personal_gradients(t, updates):
    shared, personal = plain_mean(t, updates)
    return shared + 1e-2 * updates.personal.norm(), personal


def random_weights(t, updates):
    return updates.by_task(lambda gradients, samples: torch.softmax(torch.randn(len(samples)), 0) @ gradients)


@dataclass(frozen=True)
class EveryRow(AggregatorRow):
    """Passes on all gradients and leaves it to the mean to leave absent devices out."""

    def build(self, send, link, combine):
        def aggregate(t, updates, statistics):
            weights = (link.samples * updates.present).float()
            sent = send(
                t, Updates(updates.shared.nan_to_num(), updates.personal.nan_to_num(), updates.present), statistics
            )
            shared = weights @ updates.shared / weights.sum().clamp_min(1.0)
            return replace(sent, shared=shared)

        return aggregate


def one_task(t, updates):
    shared, personal = plain_mean(t, updates)
    return shared, personal[:1]


def divides_by_the_spread(t, updates):
    return updates.by_task(lambda gradients, samples: gradients.mean(0) / gradients.std(0) * gradients.std(0))


@pytest.mark.parametrize(
    ("aggregator", "check", "words"),
    [
        (plain_sum, "equal gradients", "400 % of the largest entry away"),
        (first_device, "order of devices", "in another order"),
        (mixes_tasks, "a task by itself", "should say across_tasks=True"),
        (shares_personal_gradients, "shared by itself", "with the devices' p-gradients"),
        (random_weights, "deterministic", "draw from airpfed.core.rng.stream"),
        (EveryRow(plain_mean), "absent devices", "the sums depend on the gradients of absent devices"),
        (one_task, "combines every round", "of shape (2, 37), not of shape (1, 37)"),
        (divides_by_the_spread, "combines every round", "should be finite real numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_named(aggregator, check, words):
    report = testing.check_aggregator(aggregator)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]


def test_sharing_between_tasks_can_be_declared():
    report = testing.check_aggregator(AggregatorRow(mixes_tasks, across_tasks=True))
    assert report.ok, str(report)
