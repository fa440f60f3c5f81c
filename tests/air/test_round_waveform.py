"""A round as a waveform: decoded, it is the uplink's round; its noise is white; its pilots show the channels."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from airpfed.air import round_waveform as waveforms
from airpfed.air.channels.fading import exponential_profile
from airpfed.air.coherence import BlockChange, Scattering
from airpfed.air.correlation import Correlation
from airpfed.air.grouping import round_blocks
from airpfed.air.impairments import NONE, Impairments
from airpfed.air.problem import Transceiver
from airpfed.air.round_waveform import RoundWaveform, antenna_samples, decode_round, round_waveform
from airpfed.air.schedule import Uplink, schedule
from airpfed.air.segments import split_slots
from airpfed.air.uplink import Aggregate, initial_statistics, uplink
from airpfed.air.waveform import demodulate
from airpfed.core.errors import UserError
from airpfed.testing.links import GAIN, flat_network, random_updates
from support.uplinks import make_air

EQUAL = torch.full((5,), GAIN, dtype=torch.float64)
TWO_STATIONS = flat_network(torch.stack([EQUAL, 0.3 * EQUAL]), 4)

LINKS: dict[str, dict[str, Any]] = {
    "tdma": {},
    "concurrent": {"access": "concurrent"},
    "superposed": {"access": "superposed", "coherence_symbols": 200},
    "groups": {"subcarrier_groups": 4, "coherence_symbols": 5},
    "grouping": {"access": "auto"},
    "real": {"packing": "real", "normalizer": "common"},
    "impaired": {"csi_error": 0.1, "impairments": Impairments(0.3, 2.0, 0.1, None)},
    "mixed": {"mixing": "full", "power_over": "symbol", "access": "concurrent"},
    "turned": {"mixing": "full", "impairments": Impairments(carrier_offset_hz=3e4, timing_drift=0.2, clipping=1.0)},
    "changing": {
        "change": BlockChange(Scattering(exponential_profile(3e-7, 2e7, 4), 0.02, 16), 16, 40, 40),
        "coherence_symbols": 40,
    },
    "joint": {"topology": "joint", "network": TWO_STATIONS, "access": "concurrent"},
    "two_hop": {"topology": "two_hop", "network": TWO_STATIONS, "subcarrier_groups": 2},
    "alternating": {"alternating": ((0, 20), (20, 41))},
}


def link_of(name: str) -> Uplink:
    return make_air("mmse", **LINKS[name])


def played(link: Uplink, t: int = 2) -> tuple[RoundWaveform, Aggregate]:
    updates, statistics = random_updates(link, 0), initial_statistics(link)
    return round_waveform(link, t, updates, statistics), uplink(link, t, updates, statistics)


def all_samples(waveform: RoundWaveform) -> Tensor:
    return torch.stack([antenna_samples(waveform, antenna) for antenna in range(len(waveform.received))])


def decoded(waveform: RoundWaveform, samples: Tensor) -> dict[str, Tensor]:
    return decode_round(samples, waveform.grid, waveform.prefix, waveform.pilot_symbols, waveform.receivers)


def difference(link: Uplink, received: Aggregate, sums: dict[str, Tensor]) -> float:
    columns = slice(*received.active_columns[1]) if received.active_columns else slice(None)
    expected = {"s": received.shared[columns]}
    expected |= {task: received.personal[n, : link.lengths[n]] for n, task in enumerate(link.task_names)}
    assert set(sums) == set(expected) and received.ledger.joules_max > 0
    return max(
        float((sums[key][: len(expected[key])] - expected[key].double()).norm() / expected[key].norm()) for key in sums
    )


@pytest.mark.parametrize("name", LINKS)
def test_a_decoded_round_is_the_round_of_the_uplink(name):
    """To float32, also from samples of float32, with noise, scrambling and impairments."""
    link = link_of(name)
    waveform, received = played(link)
    samples = all_samples(waveform)
    assert waveform.pilots.shape[1] // 5 == round_blocks(link)
    assert difference(link, received, decoded(waveform, samples)) < 3e-7
    assert difference(link, received, decoded(waveform, samples.to(torch.complex64).to(samples.dtype))) < 1e-5


def test_other_noise_or_signs_would_be_seen(monkeypatch):
    """The power of the equality above: with noise or signs of its own, the waveform gives other sums."""
    zero = torch.zeros((), dtype=torch.complex128)
    for link, name, fault in (
        (link_of("superposed"), "scrambling_signs", lambda _, targets, uses, *rest: torch.ones(targets, uses).double()),
        (link_of("tdma"), "receiver_noise", lambda m, block, noise, uses, rng: zero.expand(m.receiver.shape[2], uses)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(waveforms, name, fault)
            waveform, received = played(link)
        assert difference(link, received, decoded(waveform, all_samples(waveform))) > 1e-3


def test_the_places_of_uses_are_those_of_the_grid():
    """A subcarrier's symbol, received: the channel of its block times what the devices send there, use by use."""
    link = replace(link_of("groups"), noise=0.0)
    waveform, _ = played(link)
    symbols = demodulate(all_samples(waveform), waveform.prefix, link.subcarriers)[:, waveform.pilot_symbols :]
    symbol, subcarrier = link.grid.positions(0, waveform.received.shape[1])
    torch.testing.assert_close(symbols[:, symbol, subcarrier], waveform.received)
    free = torch.ones(symbols.shape[1:], dtype=torch.bool)
    free[symbol, subcarrier] = False
    assert bool(free.any()) and float(symbols[:, free].abs().max()) < 1e-12 * float(symbols.abs().max())


def test_pilots_show_each_device_s_channel_in_each_block():
    link = replace(link_of("groups"), noise=0.0, impairments=NONE)
    waveform, _ = played(link)
    symbols = demodulate(all_samples(waveform), waveform.prefix, link.subcarriers)
    blocks, devices = waveform.pilots.shape[1] // 5, 5
    symbol, subcarrier = waveform.pilot_grid.positions(0, blocks * devices)
    pilots = symbols[:, symbol, subcarrier].reshape(-1, blocks, devices).movedim(0, 1)
    expected = link.channels(2, blocks)[1] * link.power_limit.sqrt()
    sends = pilots.abs().amax(1) > 1e-3 * expected.abs().amax(1)
    torch.testing.assert_close(pilots, expected * sends[:, None])
    assert bool(sends[0].all()) and sends[-1].tolist() == [False, False, True, True, True]  # the p-slot of task 1
    assert bool(((subcarrier // link.grid.width).reshape(blocks, devices) == (torch.arange(blocks) % 4)[:, None]).all())


def test_noise_is_white_at_the_antennas():
    """Of one power in prefix, pilots, slots and between them, and independent from antenna to antenna and in time.

    Also at the uses, where three receivers are given their combinations of it.
    """
    link = replace(make_air("channel_inversion", access="superposed"), noise=1.0)
    updates = random_updates(link, 0)
    (segment, *_) = split_slots(link, schedule(link, updates, ((0, 1),)), 1, [Correlation(0.0, 0.0)] * 4)
    receiver = torch.randn(len(segment.block_ranges), 8, 3, dtype=torch.complex128, generator=torch.manual_seed(1))
    factors = torch.zeros(len(receiver), receiver.shape[2], dtype=torch.complex128)
    transceiver = Transceiver(receiver, factors)
    uses = segment.block_ranges[-1][1]
    quiet = RoundWaveform(
        seed=1, t=1, grid=link.grid, pilot_grid=link.grid, prefix=2, noise_power=1.0, receivers=(), slots={},
        received=torch.zeros(8, uses, dtype=torch.complex128), noise=torch.zeros(8, uses, dtype=torch.complex128),
        pilots=torch.zeros(8, 5, dtype=torch.complex128),
    )  # fmt: skip
    draws = []
    for t in range(100):
        noise = waveforms.antenna_noise(link, segment, transceiver, receiver, t)
        draws.append(all_samples(replace(quiet, t=t, noise=noise)))
    samples = torch.stack(draws)  # (draws, M, samples)
    count = samples.shape[0] * samples.shape[2]
    covariance = torch.einsum("dmn,dkn->mk", samples, samples.conj()) / count
    assert float((covariance - torch.eye(8)).abs().max()) * count**0.5 < 5
    by_time = samples.abs().square().mean((0, 1)) - 1
    assert float(by_time.abs().max()) * (100 * 8) ** 0.5 < 5
    later = (samples[..., 1:] * samples[..., :-1].conj()).mean() * samples[..., 1:].numel() ** 0.5
    assert float(later.abs()) < 5


def test_what_superposes_nothing_has_no_waveform():
    link = make_air("digital")
    with pytest.raises(UserError, match="round 3: no gradients are superposed"):
        round_waveform(link, 3, random_updates(link, 0), initial_statistics(link))
    link = link_of("tdma")
    absent = replace(random_updates(link, 0), present=torch.zeros(5, dtype=torch.bool))
    with pytest.raises(UserError, match="no gradients are superposed"):
        round_waveform(link, 1, absent, initial_statistics(link))
