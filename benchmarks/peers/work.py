"""The work that every engine does: one device's gradient at shared adapters, and a round of them added up."""

from dataclasses import dataclass
from functools import cache

import torch
from central import Central, backward, central, mean_gradient, put, shared_values, taken
from fleets import CLASSES, SAMPLES, random_tokens
from torch import Tensor

from airpfed.devices.clients import draw_samples
from airpfed.devices.gradients import gradients
from airpfed.model.layout import Factors, Vectors, gather, unflatten
from airpfed.training.setup import TrainingSetup

METHOD = {"adapters": {"method": "fedit", "rank_shared": 8, "rank_personal": 0, "head": "global"}}
"""One block that all devices share, and one head: what a plain federated average can carry."""


@dataclass(frozen=True)
class World:
    """The package's experiment, PEFT's model with the same adapters, and their values."""

    made: TrainingSetup
    one: Central
    values: Vectors
    batch: int

    def rows(self, device: int, turn: int) -> list[int]:
        """A device's samples in a turn; the same for every engine."""
        return draw_samples(self.made.clients, device, (turn % SAMPLES) * self.batch, self.batch)


@cache
def world(base: str, devices: int, batch: int, tokens: int) -> World:
    """Made once a process: also once in every actor of an engine that has them."""
    settings, made = random_tokens(base, devices, batch, tokens, METHOD)
    one, values = central(settings, made), shared_values(made.initial, 0)
    first = torch.zeros(1, dtype=torch.long)
    put(one, gather(values, made.clients.layout, first, first))
    return World(made, one, values, batch)


def trained(one: Central) -> list[Tensor]:
    return [parameter for parameter in one.model.parameters() if parameter.requires_grad]


def device_gradient(here: World, device: int, turn: int) -> Tensor:
    """One device's gradient with PEFT, all trained parameters in a row."""
    rows = here.rows(device, turn)
    backward(here.one, [(here.made.clients.shards[device][i], 1 / len(rows), CLASSES) for i in rows])
    found = []
    for parameter in trained(here.one):
        assert parameter.grad is not None
        found.append(parameter.grad.flatten())
    return torch.cat(found)


def loop(here: World, turn: int) -> Tensor:
    """A round as a loop over devices; all hold equally many samples."""
    devices = len(here.made.clients.shards)
    total = device_gradient(here, 0, turn)
    for device in range(1, devices):
        total += device_gradient(here, device, turn)
    return total / devices


def ours(here: World, turn: int) -> Factors:
    """The same round by the package's stacked pass."""
    clients = here.made.clients
    plan = [[here.rows(device, turn)] for device in range(len(clients.shards))]
    found, _ = gradients(clients, here.values, plan, 1.0, here.made.devices_per_pass)
    return unflatten(mean_gradient(here.made, found), clients.layout)


def difference(here: World, found: Tensor | Factors, wanted: Factors) -> float:
    """Relative difference of two rounds' sums, the largest over all factors."""
    if isinstance(found, Tensor):
        parts = found.split([parameter.numel() for parameter in trained(here.one)])
        for parameter, part in zip(trained(here.one), parts, strict=True):
            parameter.grad = part.reshape(parameter.shape)
        found = taken(here.one, wanted)
    return max(float((found[key] - wanted[key]).norm() / wanted[key].norm()) for key in wanted)
