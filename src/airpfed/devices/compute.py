"""What computing costs the devices: seconds and joules from operations, clock frequencies and a deadline."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.core.run_files import Ledger
from airpfed.devices.clients import Clients
from airpfed.devices.flops import SampleFlops, count_sample_flops


@dataclass(frozen=True)
class ComputeModel:
    """The processors of the K devices: n operations take c n cycles, c n / f seconds and kappa f^2 c n joules.

    hertz: clock frequency f of each device. cycles_per_flop: c. kappa: effective switched capacitance, J s^2 a cycle.
    deadline: seconds after which the server no longer waits for a gradient; None for no deadline. A device that needs
    longer is late: it computes until the deadline and delivers nothing.

    >>> import torch
    >>> model = ComputeModel(torch.tensor([1e9, 2e9], dtype=torch.float64), 0.5, 1e-28, deadline=1.5)
    >>> flops = torch.tensor([4e9, 4e9], dtype=torch.float64)
    >>> model.seconds(flops), model.is_late(flops)
    (tensor([2., 1.], dtype=torch.float64), tensor([ True, False]))
    """

    hertz: Float[Tensor, " K"]
    cycles_per_flop: float
    kappa: float
    deadline: float | None = None
    _counts: list[SampleFlops] = field(default_factory=list, init=False, repr=False, compare=False)

    def flops(
        self, clients: Clients, cursors: Sequence[int], plan: Sequence[Sequence[Sequence[int]]]
    ) -> Float[Tensor, " K"]:
        """The operations of each device in a round.

        cursors: samples that each device has drawn before the round. plan: sample indices by device and local step. A
        sample of the first epoch is charged for the layers whose outputs it leaves in the cache.
        """
        if not self._counts:
            self._counts.append(count_sample_flops(clients))
        (count,) = self._counts
        totals = []
        for shard, cursor, steps in zip(clients.shards, cursors, plan, strict=True):
            samples = [shard[index] for rows in steps for index in rows]
            totals.append(
                sum(
                    count.total(len(sample.ids), len(sample.targets), cursor + position < len(shard))
                    for position, sample in enumerate(samples)
                )
            )
        return torch.tensor(totals, dtype=torch.float64).round()

    def seconds(self, flops: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """The seconds that each device computes."""
        return self.cycles_per_flop * flops / self.hertz

    def is_late(self, flops: Float[Tensor, " K"]) -> Bool[Tensor, " K"]:
        """Whether each device needs longer than the deadline."""
        seconds = self.seconds(flops)
        return seconds > self.deadline if self.deadline is not None else torch.zeros_like(seconds, dtype=torch.bool)

    def cost(self, flops: Float[Tensor, " K"], present: Bool[Tensor, " K"]) -> Ledger:
        """The part of a round's ledger that computing costs.

        flops: 0 for a device that was not asked. present: the devices whose gradients the server uses; it waits for the
        slowest of them, or until the deadline if a device is late.
        """
        seconds, late = self.seconds(flops), self.is_late(flops)
        if self.deadline is not None:
            seconds = seconds.clamp(max=self.deadline)
        waiting = float(seconds[present | late].max()) if bool((present | late).any()) else 0.0
        joules = self.kappa * self.hertz**3 * seconds
        return Ledger(
            compute_seconds=waiting,
            total_seconds=waiting,
            compute_joules=float(joules.mean()),
            total_joules_mean=float(joules.mean()),
            total_joules_max=float(joules.max()),
        )

    def reason_all_late(self, flops: Float[Tensor, " K"]) -> str:
        """Say that no device meets the deadline."""
        return (
            f"server.deadline_seconds = {self.deadline:g}: every device computes longer in round 1, the fastest "
            f"{float(self.seconds(flops).min()):.3g} s; should be more than that"
        )
