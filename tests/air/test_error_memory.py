"""What was not sent stays with the devices: nothing of their gradients is lost, counted over rounds."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from airpfed.air.designs import DESIGNS, channel_inversion
from airpfed.air.impairments import Impairments
from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.air.schedule import SlotPlan, Updates, Uplink, normalizer_groups, schedule
from airpfed.air.symbols import entries_per_use, uses_of
from airpfed.air.uplink import Aggregate, initial_statistics, uplink
from airpfed.core.memory import is_spilled
from airpfed.core.rng import stream
from support.networks import flat
from support.uplinks import as_scheme, everyone, gradients, make_air, means

FADES = Impairments(truncation=0.5)
"""A device of one antenna is silent in 1 - exp(-0.5) of all blocks."""
Choose = Callable[[TransceiverProblem], Transceiver]


def inverting(truncation: float = 0.3, **changes) -> Uplink:
    """Channel inversion at one antenna without noise, so that the sum over the devices that send is exact."""

    def design(problem: TransceiverProblem) -> Transceiver:
        return channel_inversion(problem, truncation=truncation)

    fixed = {"design": design, "batched": False, "noise": 0.0, "memory_bytes": 1e9, "coherence_symbols": 11}
    return replace(make_air(antennas=1), **{**fixed, **changes})


def digital(**options) -> Uplink:
    return replace(make_air(), memory_bytes=1e9, **as_scheme("digital", **options))


def play(link: Uplink, rounds: int, remember: bool = True) -> tuple[Tensor, Tensor, list[Aggregate]]:
    """The servers' sums of constant gradients over rounds, what the last memories add to, and the rounds."""
    shared, personal = gradients(link)
    memory, statistics, received = (torch.zeros_like(shared), torch.zeros_like(personal)), initial_statistics(link), []
    for t in range(1, rounds + 1):
        carried = (shared + memory[0], personal + memory[1]) if remember else (shared, personal)
        received.append(uplink(link, t, Updates(*carried, everyone(link)), statistics))
        memory = received[-1].unsent["global"], received[-1].unsent["task"]
    total = [torch.stack([getattr(got, part).double() for got in received]).sum(0) for part in ("shared", "personal")]
    left = means(link, *memory, everyone(link))
    return torch.cat([part.flatten() for part in total]), torch.cat([part.flatten() for part in left]), received


def exact(link: Uplink) -> Tensor:
    return torch.cat([part.flatten() for part in means(link, *gradients(link), everyone(link))])


LINKS: dict[str, Callable[[], Uplink]] = {
    "truncated inversion": lambda: inverting(packing="real", normalizer="common"),
    "fades": lambda: inverting(truncation=0.0, impairments=FADES),
    "fades, mixed": lambda: inverting(truncation=0.0, impairments=FADES, mixing="full", coherence_symbols=5),
    "top_k": lambda: digital(bits=4, quantizer="top_k", share=0.2),
    "sign": lambda: digital(bits=1, quantizer="sign"),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_constant_gradient_arrives_in_full_with_memory_and_biased_without(name):
    """Sums of T rounds are T G but for what the memories hold, exactly; that stays bounded while T G grows."""
    link, rounds = LINKS[name](), 16
    total, left, received = play(link, rounds)
    G = exact(link)
    torch.testing.assert_close(total + left, rounds * G, rtol=0, atol=2e-5 * rounds)
    assert left.norm() > 0.1 * G.norm(), "something is held back"
    with_memory = float((total / rounds - G).norm() / G.norm())
    without, _, _ = play(link, rounds, remember=False)
    lost = float((without / rounds - G).norm() / G.norm())
    assert with_memory < 0.5 * lost and lost > 0.1
    assert len({float(got.unsent["global"].norm()) for got in received}) > 1


def test_the_bias_falls_as_one_over_the_rounds():
    """Sign descent of a constant vector: the error of the mean is the memory over T, and the memory is bounded."""
    link = LINKS["sign"]()
    G = exact(link)
    errors = [float((play(link, rounds)[0] / rounds - G).norm()) for rounds in (6, 36)]
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_gives_a_faint_device_the_factor_zero(name):
    """So that the device knows of its silence by its factor."""
    h = torch.randn(2, 4, 3, dtype=torch.complex128, generator=stream(5, "h"))
    h[0, :, 1] = 0
    factors = DESIGNS[name](TransceiverProblem.from_channels(h, noise=0.1)).transmit_factors
    assert factors[0, 1] == 0 and factors[0, 0] != 0 and factors[1].any()


def expected_silence(link: Uplink, slot: SlotPlan, factors: list[Tensor], first_use: int) -> tuple[Tensor, int]:
    """The entries (streams, width) of a slot that no factor carried, by counting uses; and the next use."""
    silent = torch.zeros(slot.vectors.shape, dtype=torch.bool)
    for first, last in normalizer_groups(link, slot):
        segment = factors.pop(0)
        for column in range(first, last):
            use = first_use + (column - first) // entries_per_use(link.packing)
            silent[:, column] = segment[use // link.coherence_symbols - first_use // link.coherence_symbols] == 0
        first_use += uses_of(last - first, link.packing)
    return silent, first_use


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"access": "superposed"},
        {"access": "concurrent", "packing": "real"},
        {"topology": "two_hop", "normalizer": "common"},
        {"normalizer": "common"},
    ],
    ids=str,
)
def test_silent_entries_are_those_of_blocks_with_the_factor_zero(changes):
    """Against a count of columns, uses and blocks; per device, less the mean, which travels beside."""
    factors: list[Tensor] = []

    def patchy(problem: TransceiverProblem) -> Transceiver:
        shape = problem.h.shape
        mask = torch.rand(shape[0], shape[2], generator=stream(6, "silence", len(factors))) < 0.5
        factors.append(torch.where(mask, 0.01, 0.0).to(problem.h.dtype))
        return Transceiver(torch.ones(shape[0], shape[1], len(problem.weights), dtype=problem.h.dtype), factors[-1])

    link = inverting(design=patchy, network=flat(torch.full((2, 5), 1e-10, dtype=torch.float64), 2), **changes)
    present = everyone(link)
    present[3] = False
    shared, personal = gradients(link)
    updates = Updates(shared, personal, present)
    grouping = ((0,), (1,)) if link.access == "tdma" else ((0, 1),)
    got = uplink(link, 1, updates, initial_statistics(link)).unsent
    wanted = {"global": torch.zeros_like(shared), "task": torch.zeros_like(personal)}
    used, first_use = list(factors), 0
    for slot in schedule(link, updates, grouping):
        silent, first_use = expected_silence(link, slot, used, first_use)
        stream_number = 0
        for scope, matrix in (("global", shared), ("task", personal)):
            if not any(source is matrix for source, _ in slot.vectors.parts):
                continue
            devices = next(index for source, index in slot.vectors.parts if source is matrix)
            for device in devices.tolist():
                length = int(slot.lengths[stream_number])
                for first, last in normalizer_groups(link, slot):
                    part = slice(first, min(last, length))
                    entries = matrix[device, part].double()
                    mean = 0.0 if link.normalizer == "common" or not len(entries) else entries.mean()
                    kept = torch.where(silent[stream_number, part], entries - mean, 0.0)
                    wanted[scope][device, part] = kept.float()
                stream_number += 1
    assert not used and len(factors) > 0
    for scope in ("global", "task"):
        torch.testing.assert_close(got[scope], wanted[scope], rtol=0, atol=1e-6)
        assert (got[scope][3] == 0).all() and (got[scope] != 0).any()


def test_what_no_device_knows_is_not_stored():
    """Outages, noise, and rounding without bias."""
    lost = inverting(truncation=0.0, impairments=Impairments(outage=0.5), noise=1e-12)
    for link in (lost, digital(bits=1, quantizer="eden"), digital(bits=1)):
        got = uplink(link, 1, Updates(*gradients(link), everyone(link)), initial_statistics(link))
        assert all((value == 0).all() for value in got.unsent.values())
        assert got.mse.s is not None and got.mse.s.measured > 0.01
    error_free = replace(make_air("error_free"), memory_bytes=1e9)
    got = uplink(error_free, 1, Updates(*gradients(error_free), everyone(error_free)), initial_statistics(error_free))
    assert all((value == 0).all() for value in got.unsent.values())


def test_without_a_size_nothing_is_computed():
    link = replace(inverting(), memory_bytes=None)
    assert uplink(link, 1, Updates(*gradients(link), everyone(link)), initial_statistics(link)).unsent == {}


def test_alternating_factors_keep_what_their_columns_did_not_send():
    link = inverting(alternating=((0, 20), (20, 41)), shared_groups=((0, 20), (20, 41)))
    got = uplink(link, 2, Updates(*gradients(link), everyone(link)), initial_statistics(link))
    assert got.active_columns == (1, (20, 41)) and got.unsent["global"].shape == (5, 21)
    assert (got.unsent["global"] != 0).any()


def test_a_large_memory_lies_in_a_file():
    for size, spilled in ((1e9, False), (0.0, True)):
        link = inverting(memory_bytes=size)
        got = uplink(link, 1, Updates(*gradients(link), everyone(link)), initial_statistics(link))
        assert all(is_spilled(value) is spilled for value in got.unsent.values())
