"""Which slots a round has, who sends in them, and what each receiver wants."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.air.slot import Slot, Transceiver
from airpfed.air.symbols import Packing, uses_of

DesignFunction = Callable[[Slot], Transceiver]
Groups = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Air:
    """What stays the same from round to round, linear SI units.

    design: None is the error-free link. gain: mean power gain per device; power: P_k, watts; noise: sigma2, watts per
    antenna. samples: D_k. groups: columns of each normaliser group of the s- and p-vectors; lengths: entries of each
    task's p-vector.
    """

    design: DesignFunction | None
    access: Literal["concurrent", "tdma"]
    packing: Packing
    normalizer: Literal["common", "per_device"]
    task_names: tuple[str, ...]
    task_of: Int[Tensor, " K"]
    samples: Float[Tensor, " K"]
    gain: Float[Tensor, " K"]
    power: Float[Tensor, " K"]
    noise: float
    antennas: int
    csi_error: float
    coherence_symbols: int
    bandwidth_hz: float
    subcarriers: int
    shared_groups: Groups
    personal_groups: Groups
    lengths: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Job:
    """One slot's work: vectors of its devices, one target a row of `weights`.

    lengths: entries of each device's vector; group_of: which target wants a device; importance: D_n/D of the targets.
    """

    name: str
    devices: Int[Tensor, " K"]
    vectors: Float[Tensor, "K d"]
    lengths: Int[Tensor, " K"]
    groups: Groups
    weights: Float[Tensor, "T K"]
    group_of: Int[Tensor, " K"]
    importance: Float[Tensor, " T"]
    tasks: tuple[int, ...]


def plan(
    air: Air, shared: Float[Tensor, "K d_s"], personal: Float[Tensor, "K d_p"], present: Bool[Tensor, " K"]
) -> list[Job]:
    """The slots of a round, in the order of transmission, with weights that renormalise over the devices present."""
    here = present.nonzero().flatten()
    samples, task = air.samples[here], air.task_of[here]
    every = Job(
        "s", here, shared[here], torch.full_like(here, shared.shape[1]), air.shared_groups,
        (samples / samples.sum())[None, :], torch.zeros_like(here), torch.ones(1, dtype=torch.float64), (),
    )  # fmt: skip
    tasks = sorted(set(task.tolist()))
    slots = [tasks] if air.access == "concurrent" else [[n] for n in tasks]
    return [every, *(_personal(air, personal, here, slot) for slot in slots if slot)]


def _personal(air: Air, personal: Float[Tensor, "K d_p"], here: Int[Tensor, " present"], tasks: list[int]) -> Job:
    devices = here[torch.isin(air.task_of[here], torch.tensor(tasks))]
    own = air.task_of[devices][None, :] == torch.tensor(tasks)[:, None]
    parts = air.samples[devices] * own
    lengths = torch.tensor(air.lengths)[air.task_of[devices]]
    longest = int(lengths.max())
    groups = tuple((a, min(b, longest)) for a, b in air.personal_groups if a < longest)
    return Job(
        "p" + ",".join(str(n) for n in tasks), devices, personal[devices, :longest], lengths, groups,
        parts / parts.sum(1, keepdim=True), own.double().argmax(0), parts.sum(1) / parts.sum(), tuple(tasks),
    )  # fmt: skip


def slot_uses(air: Air, job: Job) -> int:
    """Channel uses of a slot: its groups, each filled up to a whole symbol."""
    return sum(uses_of(stop - start, air.packing) for start, stop in groups_of(air, job))


def groups_of(air: Air, job: Job) -> Groups:
    """Normaliser groups of a slot: with one common sigma, the whole vector."""
    return ((0, job.vectors.shape[1]),) if air.normalizer == "common" else job.groups
