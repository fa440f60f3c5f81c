"""The uplink's sums against the physics: antenna by antenna, with the same noise at the antennas."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from airpfed.air import row_chunks, transmit
from airpfed.air.correlation import Correlation
from airpfed.air.grouping import fixed_grouping
from airpfed.air.impairments import NONE, Impairments
from airpfed.air.problem import Transceiver, gains
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.air.segments import Segment, split_slots
from airpfed.air.superposition import (
    ReceivedSignal,
    antenna_by_antenna,
    receive,
    receiver_noise,
    superpose,
    target_streams,
)
from airpfed.air.symbols import pack_symbols, unpack_symbols
from airpfed.air.transceivers import design
from airpfed.core.rng import stream
from support.networks import flat
from support.uplinks import TASKS, everyone, gradients, make_air

USES = 50


def complex_normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=stream(seed, "superpose"))


def block(targets: int, devices: int = 7, antennas: int = 4) -> tuple[Tensor, Transceiver, Tensor, Tensor]:
    """Channels, a transceiver, symbols, and which target wants which device."""
    h, m = complex_normal(antennas, devices, seed=1), complex_normal(1, antennas, targets, seed=2)
    x = complex_normal(devices, USES, seed=4)
    return h, Transceiver(m, complex_normal(1, devices, seed=3), 0), x, torch.arange(devices) % targets


def signs_of(targets: int, seed: int = 5) -> Tensor:
    return 2.0 * torch.randint(2, (targets, USES), generator=stream(seed, "signs")).double() - 1


def received(gain: Tensor, x: Tensor, noise: Tensor, target_of: Tensor, signs: Tensor) -> ReceivedSignal:
    return receive(superpose(gain, x, target_streams(target_of, len(gain))), noise, signs)


def random_transceiver(segment: Segment, seed: int) -> Transceiver:
    """Receivers and transmit factors without any structure, receivers on the antennas that they have."""
    blocks, antennas, devices = segment.h.shape
    m = complex_normal(blocks, antennas, len(segment.slot.weights), seed=seed)
    if segment.problem.antenna_mask is not None:
        m = m * segment.problem.antenna_mask.T
    return Transceiver(1e4 * m, complex_normal(blocks, devices, seed=seed + 1), 0)


def sums_at_the_antennas(link: Uplink, segment: Segment, transceiver: Transceiver, z: Tensor, t: int) -> Tensor:
    """The slot's sums of a segment from the specification: every stream with its target's signs, at every antenna."""
    slot, group = segment.slot, segment.group
    x = pack_symbols(group.entries[:], link.packing)
    signs = transmit.scrambling_signs(link, len(slot.weights), x.shape[1], t, segment.name)
    blocks = []
    for block, (a, b) in enumerate(segment.block_ranges):
        m, factors = transceiver.receiver[block], transceiver.transmit_factors[block]
        scrambled = signs[slot.target_of, a:b] * x[:, a:b]
        blocks.append(antenna_by_antenna(segment.h[block], m, factors, scrambled, z[:, a:b]) * signs[:, a:b])
    entries = unpack_symbols(torch.cat(blocks, 1), link.packing, group.entries.shape[1])
    estimate = group.scale[:, None] * entries + group.offset[:, None]
    return slot.combining_matrix @ (estimate * (torch.arange(entries.shape[1]) < group.num_entries[:, None]))


WAYS = {
    "one receiver": {},
    "several targets": {"access": "concurrent"},
    "several targets, real": {"access": "concurrent", "packing": "real", "normalizer": "common"},
    "s and p at once": {"access": "superposed"},
    "edges": {"topology": "two_hop", "access": "concurrent"},
    "edges, real": {"topology": "two_hop", "access": "superposed", "packing": "real"},
    "stations together": {"topology": "joint", "access": "tdma"},
}


@pytest.mark.parametrize(
    ("way", "at_once", "impairments", "solve"),
    [*product(WAYS, (1 << 23, 90), (NONE, Impairments(0.3, None, 0.2)), (False,)), ("s and p at once", 90, NONE, True)],
)
def test_a_transmitted_segment_is_the_antennas_sum(way, at_once, impairments, solve, monkeypatch):
    """`transmit` with chunks of two streams, or all streams, against y = sum_k h_k b_k x_k + z and m^H y.

    Several coherence blocks, an absent device, wrong estimates; a target with a shorter vector; random transceivers, or
    those of a design.
    """
    edges = torch.where(torch.stack([TASKS == 0, TASKS == 1]), 1e-10, 2e-12).double()
    link = make_air(csi_error=0.05, impairments=impairments, seed=5, noise=1e-11, **WAYS[way])
    link = link if link.topology == "single_cell" else replace(link, network=flat(edges, 4))
    present = everyone(link)
    present[3] = False
    slots = schedule(link, Updates(*gradients(link), present), fixed_grouping(link, present))
    segments = split_slots(link, slots, 2, [Correlation(0.3, 0.1)] * 4)
    if solve:
        [transceivers] = design(link, [segments])
    else:
        transceivers = [random_transceiver(segment, 10 * n) for n, segment in enumerate(segments)]
    monkeypatch.setattr(row_chunks, "ENTRIES", at_once)
    assert len(segments) > 1 and max(len(segment.block_ranges) for segment in segments) > 1
    for segment, transceiver in zip(segments, transceivers, strict=True):
        z = link.noise**0.5 * complex_normal(segment.h.shape[1], segment.block_ranges[-1][1], seed=7)

        def combined(made, block, noise, uses, rng, z=z, ranges=segment.block_ranges):
            return made.receiver[block].mH @ z[:, slice(*ranges[block])]

        monkeypatch.setattr(transmit, "receiver_noise", combined)
        expected = sums_at_the_antennas(link, segment, transceiver, z, 2)
        torch.testing.assert_close(
            transmit.transmit(link, segment, transceiver, 2).sums, expected, rtol=1e-10, atol=1e-12
        )


def test_own_part_and_crosstalk_add_up_to_what_is_received():
    h, made, x, group_of = block(3)
    signs, silence = signs_of(3), torch.zeros(3, USES, dtype=torch.complex128)
    heard = received(gains(h[None], made)[0], x, silence, group_of, signs)
    scrambled = (heard.crosstalk * signs[None]).sum(1) * signs
    torch.testing.assert_close(heard.desired + scrambled, heard.received)
    assert (heard.crosstalk.diagonal(dim1=0, dim2=1) == 0).all()


def test_scrambling_makes_the_mean_of_the_crosstalk_vanish():
    """Given symbols and channels; without signs the crosstalk would be a constant far from zero."""
    h, made, x, group_of = block(3)
    gain, silence = gains(h[None], made)[0], torch.zeros(3, USES, dtype=torch.complex128)
    rest = []
    for draw in range(400):
        heard = received(gain, x, silence, group_of, signs_of(3, seed=100 + draw))
        rest.append(heard.received - heard.desired)
    found = torch.view_as_real(torch.stack(rest))
    z = found.mean(0) / (found.std(0) / len(found) ** 0.5)
    assert z.abs().max() < 5
    plain = received(gain, x, silence, group_of, torch.ones(3, USES, dtype=torch.float64))
    constant = torch.view_as_real(plain.received - plain.desired)
    assert (constant.abs() / (found.std(0) / len(found) ** 0.5)).median() > 5


def test_receiver_noise_has_the_covariance_of_the_combined_antennas():
    """E n n^H = noise M^H M and E n n^T = 0, entry by entry; variances of products from the Gaussian fourth moments."""
    _, made, _, _ = block(3)
    noise, uses = 1e-13, 100_000
    n = receiver_noise(made, 0, noise, uses, stream(7, "noise"))
    m = made.receiver[0]
    expected = noise * (m.mH @ m)
    spread = (expected.diagonal().real[:, None] * expected.diagonal().real[None, :] / uses).sqrt()
    assert ((n @ n.mH / uses - expected).abs() / spread).max() < 5
    assert ((n @ n.mT / uses).abs() / (2**0.5 * spread)).max() < 5
    slipped = (1.02 * expected - expected).diagonal().real / spread.diagonal()
    assert slipped.min() > 5


def test_receivers_that_hear_the_same_have_one_noise():
    """Rank-one M^H M: jointly Gaussian, not independent per receiver."""
    _, made, _, _ = block(2)
    twice = Transceiver(made.receiver[:, :, [0, 0]], made.transmit_factors, 0)
    n = receiver_noise(twice, 0, 1.0, 20, stream(8, "noise"))
    torch.testing.assert_close(n[0], n[1], rtol=0, atol=1e-6)
