"""The contract of an aggregator, checked on the gradients of five devices of two tasks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from airpfed.air.network import Network
from airpfed.air.schedule import Updates, Uplink
from airpfed.air.uplink import Aggregate, initial_statistics, uplink
from airpfed.testing.links import nan_when_absent, random_updates, small_uplink, sums_difference, task_entries
from airpfed.testing.report import (
    CheckSkipped,
    Report,
    require,
    run_checks,
    subject_of,
    tensors_equal,
    with_global_seeds,
)
from airpfed.training.aggregators import AggregatorRow

TOLERANCE = 1e-5
"""Largest difference of two sums that should be equal, relative to the largest entry: gradients are float32."""

Pair = tuple[Tensor, Tensor]


def check_aggregator(aggregator: AggregatorRow | Callable[..., Any] | str, **options: Any) -> Report:
    """Check an aggregator: everything that the training loop relies on.

    aggregator: an `AggregatorRow`, a function `(t, updates, *, options) -> (shared, personal)`, or the name of a row of
    `AGGREGATORS`. options: its options. It runs on an error-free link, in rounds with all devices and with few. Raises
    UserError for a function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> testing.check_aggregator("trimmed_mean", trim=0.2).ok
    True
    """
    subject = subject_of("aggregators", aggregator, options)
    trial = AggregatorTrial(subject.row, subject.function)
    return run_checks(
        subject,
        [
            ("combines every round", trial.combines),
            ("deterministic", trial.deterministic),
            ("order of devices", trial.device_order),
            ("absent devices", trial.absent_devices),
            ("equal gradients", trial.equal_gradients),
            ("a task by itself", trial.independent_tasks),
            ("shared by itself", trial.independent_shared),
        ],
    )


@dataclass(frozen=True)
class AggregatorTrial:
    """An aggregator with its options set."""

    row: AggregatorRow
    function: Callable[..., Any]

    def combine(self, link: Uplink, updates: Updates, t: int = 1) -> Pair:
        """The sums of a round, as the servers get them: shared (d_s), personal (N, d_p)."""
        aggregate: Aggregate = self.row.build(partial(uplink, link), link, self.function)(
            t, updates, initial_statistics(link)
        )
        return aggregate.shared, aggregate.personal

    def combines(self) -> str:
        """Finite sums of the right shapes, whoever is present: all devices, one, none of a task, or nobody."""
        link = small_uplink()
        for present in (range(5), (0,), (2, 3), (0, 4), (1, 2, 3, 4), ()):
            updates = replace(random_updates(link, 0), present=mask_of(present))
            shared, personal = self.combine(link, updates)
            require(
                shared.dtype == torch.float32 and personal.dtype == torch.float32, "sums should be float32 in the end"
            )
            if not len(tuple(present)):
                require(not bool(shared.any() or personal.any()), "a round without devices has a sum")
        zeros = Updates(torch.zeros(5, 41), torch.zeros(5, 37), mask_of(range(5)))
        require(
            not any(bool(part.any()) for part in self.combine(link, zeros)), "gradients of 0 have a sum that is not 0"
        )
        return "6 rounds"

    def deterministic(self) -> str:
        """The same gradients give the same bits, whatever the global generators hold."""
        link, updates = small_uplink(), random_updates(small_uplink(), 0)
        first, second = with_global_seeds(lambda: self.combine(link, updates))
        require(
            tensors_equal(first, second),
            f"two calls differ by {sums_difference(first, second):.3g} of the largest entry; draw from "
            "airpfed.core.rng.stream(seed, name, t)",
        )
        return "equal bits"

    def device_order(self) -> str:
        """Devices in another order give the same sums."""
        link, updates = small_uplink(), random_updates(small_uplink(), 0)
        order = torch.tensor([4, 2, 0, 3, 1])
        other = self.combine(permute_devices(link, order), permute_updates(updates, order))
        change = sums_difference(other, self.combine(link, updates))
        require(change <= TOLERANCE, f"with the devices in another order, the sums change by {100 * change:.3g} %")
        return f"sums differ by {change:.1e}"

    def absent_devices(self) -> str:
        """The gradients of absent devices are not read."""
        link, updates = small_uplink(), random_updates(small_uplink(), 0)
        present = mask_of((0, 2, 3))
        expected = self.combine(link, replace(updates, present=present))
        sums = self.combine(link, nan_when_absent(updates, present))
        require(tensors_equal(sums, expected), "the sums depend on the gradients of absent devices")
        return "equal bits"

    def equal_gradients(self) -> str:
        """Devices that all send one vector get this vector; not for a row that says `changes_size`."""
        if self.row.changes_size:
            raise CheckSkipped("the row says changes_size")
        link = small_uplink()
        updates = random_updates(link, 0)
        shared = updates.shared[1]
        personal = random_updates(link, 1).personal[3] * task_entries(link)[-1]  # no entry beyond the shorter vector
        same = Updates(shared.expand(5, -1).clone(), personal.expand(5, -1).clone(), updates.present)
        sums = self.combine(link, same)
        change = sums_difference(sums, (shared, personal.expand(2, -1)))
        require(
            change <= TOLERANCE,
            f"devices that all send the same vector get one that is {100 * change:.3g} % of the largest entry away; "
            "a row that clips or scales should say changes_size=True",
        )
        return f"sums differ by {change:.1e}"

    def independent_tasks(self) -> str:
        """A task's p-sum depends on the p-gradients of its own devices only; not for a row that says `across_tasks`."""
        if self.row.across_tasks:
            raise CheckSkipped("the row says across_tasks")
        link, updates = small_uplink(), random_updates(small_uplink(), 0)
        expected = self.combine(link, updates)[1]
        for task in (0, 1):
            other_devices = (link.task_of != task)[:, None]
            changed = torch.where(other_devices, -3.0 * updates.personal + 1.0, updates.personal) * task_entries(link)
            change = sums_difference(
                (self.combine(link, replace(updates, personal=changed))[1][task],), (expected[task],)
            )
            require(
                change <= TOLERANCE,
                f"the p-sum of task {task} changes by {100 * change:.3g} % with the gradients of the other task; a row "
                "that shares between tasks should say across_tasks=True",
            )
        return ""

    def independent_shared(self) -> str:
        """The shared sum does not depend on p-gradients, which stay with their task."""
        if self.row.across_tasks:
            raise CheckSkipped("the row says across_tasks")
        link, updates = small_uplink(), random_updates(small_uplink(), 0)
        changed = replace(updates, personal=-2.0 * updates.personal)
        change = sums_difference((self.combine(link, changed)[0],), (self.combine(link, updates)[0],))
        require(change <= TOLERANCE, f"the shared sum changes by {100 * change:.3g} % with the devices' p-gradients")
        return ""


def mask_of(present: Any) -> Bool[Tensor, " K"]:
    """The mask of the present devices among five."""
    mask = torch.zeros(5, dtype=torch.bool)
    mask[list(present)] = True
    return mask


def permute_devices(link: Uplink, order: Int[Tensor, " K"]) -> Uplink:
    """The small uplink with its devices in another order; its gains are equal."""
    network: Network = replace(link.network, gain=link.network.gain[:, order])
    return replace(
        link,
        task_of=link.task_of[order],
        samples=link.samples[order],
        power_limit=link.power_limit[order],
        network=network,
    )


def permute_updates(updates: Updates, order: Int[Tensor, " K"]) -> Updates:
    """The gradients in another order of devices."""
    return Updates(updates.shared[order], updates.personal[order], updates.present[order])
