"""A round over the air of five devices and two tasks: its settings, gradients, weighted means, and its errors."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from airpfed.air import distortion, impairments, schedule, transmit, uplink
from airpfed.air.designs import DESIGNS
from airpfed.air.network import Network
from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.air.schedule import Updates, Uplink
from airpfed.air.schemes import SCHEMES
from airpfed.air.uplink import Aggregate, initial_statistics
from airpfed.core.rng import stream
from airpfed.core.run_files import SlotError
from airpfed.testing.links import TASK_OF, exact_means, small_uplink
from support import designs

TASKS = torch.tensor(TASK_OF)
AGAIN = ("noise", "scrambling", "phase", "outage", "backhaul", "carrier offset", "timing", "amplifier")


def make_air(design: str = "uniform_forcing", debias: bool = False, antennas: int = 8, **changes) -> Uplink:
    """Five devices, two tasks, unequal data, equal gains, 15 dB at one antenna; p-vectors with a tail like a head's."""
    scheme = SCHEMES.get(design)
    link = small_uplink(
        antennas,
        send=scheme.send if scheme else None,
        cost=scheme.cost if scheme else None,
        design=None if scheme else designs.once(design, debias),
        batched=not scheme and DESIGNS[design].batched,
    )
    return replace(link, **changes)


def as_scheme(name: str, **options) -> dict[str, object]:
    """The fields of an uplink whose slots are sent by a scheme in place of a design."""
    scheme = SCHEMES[name]
    cost, unsent = (partial(function, **options) if function else None for function in (scheme.cost, scheme.unsent))
    return {
        "send": SCHEMES.bind(name, options),
        "cost": cost,
        "unsent": unsent,
        "design": None,
        "rescale": False,
    }


def send(
    link: Uplink, t: int, shared: Tensor, personal: Tensor, present: Tensor, statistics: Tensor | None = None
) -> Aggregate:
    """A round, by default one after which nothing is remembered."""
    before = initial_statistics(link) if statistics is None else statistics
    return uplink.uplink(link, t, Updates(shared, personal, present), before)


def gradients(link: Uplink, d_s: int = 41, t: int = 0) -> tuple[Tensor, Tensor]:
    """Independent normal gradients, zero beyond each task's own length, devices of unlike size and mean."""
    rng = stream(11, "gradients", t)
    size = torch.linspace(0.5, 2.0, len(link.samples))[:, None]
    shared = size * (torch.randn(len(size), d_s, generator=rng) + 0.3)
    personal = size * (torch.randn(len(size), max(link.lengths), generator=rng) - 0.2)
    own = torch.arange(max(link.lengths)) < torch.tensor(link.lengths)[link.task_of][:, None]
    return shared, personal * own


def means(link: Uplink, shared: Tensor, personal: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """G^s and G_n^p by loops over the devices present."""
    return exact_means(link, Updates(shared, personal, present))


def everyone(link: Uplink) -> Tensor:
    return torch.ones(len(link.samples), dtype=torch.bool)


def is_finite(received: Aggregate) -> bool:
    numbers = [received.pi or 0.0, received.ledger.air_seconds, received.ledger.joules_max]
    for error in [received.mse.s, *received.mse.p.values()]:
        numbers += [value for value in error.model_dump().values() if value is not None] if error else []
    tensors = bool(received.shared.isfinite().all() and received.personal.isfinite().all())
    return tensors and bool(torch.tensor(numbers).isfinite().all())


def large_air(
    design: str, debias: bool = False, d: int = 800, lengths: tuple[int, int] | None = None, **changes
) -> Uplink:
    """Even lengths, one group, two coherence blocks and more, 10 dB."""
    one = ((0, d),)
    link = make_air(design, debias, shared_groups=one, personal_groups=one, lengths=lengths or (d, d), **changes)
    return replace(link, noise=link.noise * 10**0.5, coherence_symbols=d // 5)


def drawn(link: Uplink, draw: int) -> tuple[Tensor, Tensor]:
    """Independent normal gradients whose rows have exactly mean 0 and a deviation of their device's own."""
    d = link.shared_groups[-1][1]
    rng, size = stream(5, "gradients", draw), torch.linspace(0.5, 2.0, 5)[:, None]
    rows = torch.randn(2, 5, d, generator=rng, dtype=torch.float64)
    own = torch.arange(d) < torch.tensor(link.lengths)[link.task_of][:, None]
    rows = torch.stack([rows[0], rows[1] * own])
    count = torch.stack([torch.full((5, 1), d), own.sum(1, keepdim=True)])
    centred = (rows - rows.sum(2, keepdim=True) / count) * torch.stack([torch.ones_like(own), own])
    rows = (centred / (centred.square().sum(2, keepdim=True) / count).sqrt() * size).float()
    return rows[0], rows[1]


def rounds(
    link: Uplink, count: int, monkeypatch: pytest.MonkeyPatch, fresh: bool = True, of=drawn
) -> Iterator[Aggregate]:
    """The same round `count` times with new noise, scrambling, impairments, CSI error and (`fresh`) new gradients.

    Channel estimates stay, so that a design is made once; the channels are these plus a new error each time.
    """
    made: dict[tuple, Transceiver] = {}
    design = link.design
    assert design is not None

    def remembered(problem: TransceiverProblem) -> Transceiver:
        key = (problem.h.shape, problem.weights.shape, complex(problem.h[0, 0, 0]))
        return made.setdefault(key, made[key] if key in made else design(problem))

    link = replace(link, design=remembered)
    for draw in range(count):
        for module in (transmit, impairments, distortion):
            monkeypatch.setattr(
                module, "stream", lambda seed, *names, n=draw: stream(seed, *names, *([n] if names[0] in AGAIN else []))
            )
        monkeypatch.setattr(schedule, "estimate_channels", partial(missed, draw))
        yield send(link, 1, *of(link, draw if fresh else 0), everyone(link))


def missed(draw: int, network: Network, csi_error: float, seed: int, t: int, blocks: range) -> tuple[Tensor, Tensor]:
    """Rayleigh estimates of variance (1 - c) gain, and channels c gain away from them, as in `estimate_channels`."""
    h, _ = network.channel_model(seed, t, blocks)
    e, _ = network.channel_model(1000 + draw, t, blocks)
    known = (1 - csi_error) ** 0.5 * h
    return known, known + csi_error**0.5 * e


def slots(received: Aggregate) -> list[SlotError]:
    assert received.mse.s is not None
    return [received.mse.s, *received.mse.p.values()]


def excess(rows: list[Aggregate], expected: Callable[[SlotError], float]) -> Tensor:
    """measured / expected - 1 of every slot, a row a round: mean 0 if `expected` is what it says."""
    return torch.tensor([[e.measured / expected(e) - 1 for e in slots(row)] for row in rows], dtype=torch.float64)


def z_of(values: Tensor) -> float:
    """The mean in units of its standard error, rounds (rows) being independent."""
    means = values.reshape(len(values), -1).mean(1)
    return float(means.mean() / (means.std() / len(means) ** 0.5).clamp_min(1e-300))


def alike(link: Uplink, draw: int, rho: float = 0.7) -> tuple[Tensor, Tensor]:
    """`drawn`, but every two devices' rows have correlation rho."""
    common = drawn(link, 1000 + draw)
    own, size = drawn(link, draw), torch.linspace(0.5, 2.0, 5)[:, None]
    mixed = [
        (1 - rho) ** 0.5 * one + rho**0.5 * both[:1] / size[0] * size for one, both in zip(own, common, strict=True)
    ]
    return mixed[0], mixed[1]
