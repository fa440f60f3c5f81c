"""Aggregators by name: what makes sums of the devices' gradients. The uplink is one of them.

A row's function `(t, updates, *, options) -> (shared, personal)` takes the place of the sum over the air, on an
error-free link that carries every device's gradient: shared (d_s), personal (N, d_p), a row a task.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from airpfed.air.schedule import Updates, Uplink
from airpfed.air.uplink import Aggregate
from airpfed.core.errors import UserError
from airpfed.core.rows import RowDict
from airpfed.core.run_files import MeanSquaredErrors

Sums = tuple[Float[Tensor, " d_s"], Float[Tensor, "N d_p"]]
"""What the servers step along: the shared vector, and a row of the personal vectors for each task."""


@dataclass(frozen=True)
class DeviceUpdates:
    """The gradients of the K devices that are present in a round, and what the server knows of them.

    shared: gradients of the s-adapter, float32. personal: gradients of each device's p-adapter, zeros beyond the length
    of its task's. samples: D_k, the training samples of each device, float32. task_of: task of each device, 0 to
    num_tasks - 1.

    >>> import torch, airpfed as ap
    >>> samples, task_of = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0, 0, 1])
    >>> updates = ap.DeviceUpdates(torch.eye(3), torch.ones(3, 2), samples, task_of, num_tasks=2)
    >>> shared, personal = updates.by_task(lambda gradients, samples: samples / samples.sum() @ gradients)
    >>> shared, personal.shape
    (tensor([0.2500, 0.2500, 0.5000]), torch.Size([2, 2]))
    """

    shared: Float[Tensor, "K d_s"]
    personal: Float[Tensor, "K d_p"]
    samples: Float[Tensor, " K"]
    task_of: Int[Tensor, " K"]
    num_tasks: int

    def by_task(self, combine: Callable[[Tensor, Tensor], Tensor]) -> Sums:
        """Combine the gradients of all devices, and of each task: combine(gradients, samples) -> one vector.

        gradients: (k, d) of some devices; samples: their D_k, (k). A task without a device keeps zeros. Raises
        UserError if `combine` gives anything else than a vector of d entries.
        """

        def vector(gradients: Tensor, samples: Tensor) -> Tensor:
            result = combine(gradients, samples)
            if not isinstance(result, Tensor) or result.shape != gradients.shape[1:]:
                shape = f"of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
                raise UserError(
                    f"server.aggregator: combine should give one vector of shape {tuple(gradients.shape[1:])} for "
                    f"gradients of shape {tuple(gradients.shape)}, not {shape}"
                )
            return result

        personal = torch.zeros(self.num_tasks, self.personal.shape[1], dtype=self.personal.dtype)
        for n in range(self.num_tasks):
            members = self.task_of == n
            if bool(members.any()):
                personal[n] = vector(self.personal[members], self.samples[members])
        return vector(self.shared, self.samples), personal


@dataclass(frozen=True)
class AggregatorRow:
    """An aggregator.

    combine: (t, updates, *, options) -> sums. is_uplink: whether the row is the uplink itself; then `combine` is not
    called. across_tasks: whether a task's p-sum depends on other tasks' devices; `airpfed.testing` otherwise checks
    that it does not. changes_size: whether devices that all send one vector get another one, as clipping and scaling
    give; `airpfed.testing` otherwise checks that they get this one.

    >>> import airpfed as ap
    >>> clipped = ap.AggregatorRow(lambda t, updates: updates.by_task(lambda g, d: g.mean(0)), changes_size=True)
    >>> clipped.is_uplink
    False
    """

    combine: Callable[..., Sums]
    is_uplink: bool = False
    across_tasks: bool = False
    changes_size: bool = False

    def build(
        self, send: Callable[[int, Updates, Tensor], Aggregate], link: Uplink, combine: Callable[..., Sums]
    ) -> Callable[[int, Updates, Tensor], Aggregate]:
        """The function of a round. send: the uplink. combine: the row's function with its options set."""
        if self.is_uplink:
            return send

        def aggregate(t: int, updates: Updates, statistics: Tensor) -> Aggregate:
            sent, present = send(t, updates, statistics), updates.present
            if not bool(present.any()):
                return sent
            devices = DeviceUpdates(
                updates.shared[present],
                updates.personal[present],
                link.samples[present].to(updates.shared.dtype),
                link.task_of[present],
                len(link.task_names),
            )
            sums = combine(t, devices)
            if not isinstance(sums, (tuple, list)) or len(sums) != 2:
                raise UserError(f"server.aggregator: should give (shared, personal), not {type(sums).__name__}")
            shared, personal = sums
            for name, new, old in (("shared", shared, sent.shared), ("personal", personal, sent.personal)):
                if reason := reason_against(new, old):
                    raise UserError(
                        f"server.aggregator: {name} should be finite real numbers of shape {tuple(old.shape)}, not "
                        f"{reason}"
                    )
            return replace(
                sent,
                shared=shared.to(sent.shared.dtype),
                personal=personal.to(sent.personal.dtype),
                mse=MeanSquaredErrors(),
                pi=None,
                pi_claimed=None,
            )

        return aggregate


def reason_against(new: object, old: Tensor) -> str:
    """Say what a sum is if it is not as it should be; empty if it is. old: a sum of the right shape."""
    if not isinstance(new, Tensor):
        return type(new).__name__
    if new.shape != old.shape:
        return f"of shape {tuple(new.shape)}"
    if not new.is_floating_point():
        return str(new.dtype).removeprefix("torch.")
    return "" if bool(new.isfinite().all()) else "infinities or NaN"


def uplink_sum(t: int, updates: DeviceUpdates) -> Sums:
    """The sums that the uplink of [radio] delivers, weighted by the devices' samples D_k."""
    raise NotImplementedError("the uplink takes its own path")


def median(t: int, updates: DeviceUpdates) -> Sums:
    """The median of the devices' gradients, entry by entry (Yin et al., ICML 2018); weights are not used."""

    def combine(gradients: Tensor, samples: Tensor) -> Tensor:
        ordered: Tensor = gradients.sort(0).values
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2  # of an even number, the two middle

    return updates.by_task(combine)


def trimmed_count(trim: float, devices: int) -> int:
    """How many of so many devices `trimmed_mean` leaves out at each end of every entry."""
    return min(math.ceil(round(trim * devices, 9)), (devices - 1) // 2)


def trimmed_mean(
    t: int,
    updates: DeviceUpdates,
    *,
    trim: Annotated[
        float,
        Field(ge=0, lt=0.5, description="share of the devices left out at each end, rounded up; at least one stays"),
    ] = 0.1,
) -> Sums:
    """The mean of each entry without its largest and smallest values (Yin et al., ICML 2018); weights are not used.

    Each sum is trimmed over its own devices: those of a task for a p-sum. With one or two devices nothing can be left
    out.
    """

    def combine(gradients: Tensor, samples: Tensor) -> Tensor:
        cut = trimmed_count(trim, len(gradients))
        inner: Tensor = gradients.sort(0).values[cut : len(gradients) - cut]
        return inner.mean(0)

    return updates.by_task(combine)


AGGREGATORS: RowDict[AggregatorRow] = RowDict(
    "aggregator",
    {
        "uplink": AggregatorRow(uplink_sum, is_uplink=True),
        "median": AggregatorRow(median),
        "trimmed_mean": AggregatorRow(trimmed_mean),
    },
    wrap=AggregatorRow,
    function=lambda row: row.combine,
)
"""The aggregators that `server.aggregator` knows."""
