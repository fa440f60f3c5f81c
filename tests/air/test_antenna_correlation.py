"""What a slot's antennas tell of the correlation of its devices."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from airpfed.air import antenna_correlation
from airpfed.air.antenna_correlation import antenna_covariance, cell_correlation, correlation_levels
from airpfed.air.correlation import INDEPENDENT, CellCorrelation, CorrelatedPairs, Correlation
from airpfed.air.distortion import distortion_of
from airpfed.air.grouping import round_grouping
from airpfed.air.impairments import Impairments
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.air.segments import Segment, split_slots
from airpfed.air.superposition import receive
from airpfed.air.transceivers import design
from airpfed.air.transmit import antenna_noise_power, receivers_noise, sample_correlation, superpose_segment
from airpfed.air.uplink import initial_statistics
from airpfed.core.rng import stream
from support.networks import flat
from support.uplinks import alike, drawn, everyone, large_air, send

RHO = 0.9


def against(link: Uplink, t: int) -> tuple[Tensor, Tensor]:
    """Devices of a task correlate by `RHO`, those of different tasks by -RHO."""
    common, own = drawn(link, 1000 + t), drawn(link, t)
    size = torch.linspace(0.5, 2.0, 5)[:, None]
    sign = torch.where(link.task_of == 0, 1.0, -1.0)[:, None]
    mixed = [
        (1 - RHO) ** 0.5 * one + RHO**0.5 * sign * both[:1] / size[0] * size
        for one, both in zip(own, common, strict=True)
    ]
    return mixed[0], mixed[1]


def loud_air(clipping: float = 1.0, d: int = 4800, noise: float = 1e-3, **changes) -> Uplink:
    """Amplifiers near saturation, full mixing, blocks of whole OFDM symbols."""
    link = large_air(
        "uniform_forcing", d=d, subcarriers=120, mixing="full", impairments=Impairments(clipping=clipping), **changes
    )
    return replace(link, coherence_symbols=600, noise=noise * link.noise, correlation=None)


def estimates(link: Uplink, updates: Updates) -> list[tuple[Segment, CellCorrelation]]:
    """Each segment of a round with the estimate of its correlation, and a covariance that agrees with its receivers.

    What the antennas receive is what the receivers receive: m^H C m is the power after a receiver of its own slot.
    """
    slots = schedule(link, updates, round_grouping(link, 1, everyone(link)))
    segments = split_slots(link, slots, 1, [INDEPENDENT] * len(initial_statistics(link)))
    (transceivers,) = design(link, [segments])
    result = []
    for segment, transceiver in zip(segments, transceivers, strict=True):
        distortion = distortion_of(link, segment, transceiver)
        superposed = superpose_segment(link, segment, transceiver, distortion, 1)
        after = receivers_noise(link, segment, transceiver, superposed, 1)
        noise, streams = antenna_noise_power(link, segment, superposed), superposed.at_antennas
        assert streams is not None
        covariance = antenna_covariance(link, segment, transceiver, streams, noise, after, 1)
        signal = receive(superposed.parts, after, superposed.signs).received * superposed.signs
        m = transceiver.receiver
        for block, (first, last) in enumerate(segment.block_ranges[: len(covariance)]):
            power = (m[block].mH @ covariance[block] @ m[block]).diagonal().real
            torch.testing.assert_close(power, signal[:, first:last].abs().square().mean(1))
        result.append((segment, cell_correlation(segment, transceiver, distortion, covariance)))
    return result


@pytest.mark.parametrize("most", [16, 2, 1])
@pytest.mark.parametrize("access", ["tdma", "concurrent"])
def test_correlations_of_opposite_signs_are_found(access, most, monkeypatch):
    """As pairs of devices, as pairs of tasks, and as one number within tasks and one between them."""
    monkeypatch.setattr(antenna_correlation, "MAX_CELLS", most)
    link = loud_air(access=access)
    for segment, R in estimates(link, Updates(*against(link, 0), everyone(link))):
        devices = torch.eye(len(segment.task_of), dtype=torch.float64)
        torch.testing.assert_close(R.times(devices), sample_correlation(segment).times(devices), atol=0.02, rtol=0)
        assert len(R.value) == (len(devices) if len(devices) <= most else int(segment.pairs.cell.max()) + 1)


def test_in_noise_the_assumed_correlation_stays():
    link = loud_air(noise=1e6)
    for _, R in estimates(link, Updates(*against(link, 0), everyone(link))):
        assert float(R.value.abs().max()) < 0.1


def test_claims_of_amplifiers_hold_where_tasks_disagree():
    """The mean correlation of the s-slot is about 0, and so would be that of its distortions."""
    link = loud_air(d=1200)
    rows = [send(link, t, *against(link, t), everyone(link)).mse.s for t in range(1, 13)]
    claimed, genie, measured = (
        sum(getattr(row, key) for row in rows if row) for key in ("claimed", "claimed_genie", "measured")
    )
    assert genie == pytest.approx(measured, rel=0.03)
    assert claimed == pytest.approx(measured, rel=0.04)


def test_levels_are_coarse_then_fine():
    pairs = CorrelatedPairs(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 0, 1]))
    R, levels = correlation_levels(pairs, Correlation(0.5, 0.2))
    together = torch.tensor(
        [[0, 0.5, 0.2, 0.2, 0], [0.5, 0, 0.2, 0.2, 0], [0.2, 0.2, 0, 0.5, 0], [0.2, 0.2, 0.5, 0, 0], [0] * 5]
    )
    torch.testing.assert_close(R.value, together.double())
    assert [int(kinds.max()) + 1 for kinds in levels] == [2, 3, 6], "within and between; pairs of tasks; of devices"
    for kinds in levels:
        assert torch.equal(kinds, kinds.T) and torch.equal(kinds < 0, together == 0)


def test_a_cell_s_correlation_leaves_out_its_devices_themselves():
    value, cell = torch.tensor([[0.5, -0.3], [-0.3, 0.2]]).double(), torch.tensor([0, 0, 1])
    R = CellCorrelation(value, cell).times(torch.eye(3).double())
    expected = torch.tensor([[1.0, 0.5, -0.3], [0.5, 1.0, -0.3], [-0.3, -0.3, 1.0]]).double()
    torch.testing.assert_close(R, expected)
    cubes = CellCorrelation(value, cell).raised(3).times(torch.eye(3).double())
    torch.testing.assert_close(cubes, expected**3)


def test_few_blocks_tell_as_much(monkeypatch):
    """Of more devices fewer blocks are read, here the first one."""
    monkeypatch.setattr(antenna_correlation, "MAX_PAIRS", 1)
    link = loud_air()
    for segment, R in estimates(link, Updates(*against(link, 0), everyone(link))):
        devices = torch.eye(len(segment.task_of), dtype=torch.float64)
        torch.testing.assert_close(R.times(devices), sample_correlation(segment).times(devices), atol=0.08, rtol=0)


def test_faint_pairs_do_not_add_their_noise_to_the_claims():
    """The cube of a noisy estimate is larger in the mean: 100 uses at 8 antennas tell little of 120 pairs."""
    devices, d = 16, 200
    link = loud_air(clipping=0.3, d=d, lengths=(0, 0), noise=10.0)
    link = replace(
        link,
        task_of=torch.arange(devices) // 8,
        samples=torch.ones(devices, dtype=torch.float64),
        network=flat(link.network.gain[:, :1].expand(1, devices), 8),
        power_limit=torch.full((devices,), 0.1, dtype=torch.float64),
        personal_groups=(),
        coherence_symbols=100,
    )
    statistics, rows = initial_statistics(link), []
    for t in range(1, 25):
        rng = stream(6, "agreeing", t)
        shared = torch.randn(devices, d, generator=rng) + torch.randn(1, d, generator=rng)  # correlated by 0.5
        received = send(link, t, shared, torch.zeros(devices, 0), everyone(link), statistics)
        statistics = received.correlation_statistics
        rows.append(received.mse.s)
    claimed, genie = (sum(getattr(row, key) for row in rows if row) for key in ("claimed", "claimed_genie"))
    assert claimed == pytest.approx(genie, rel=0.03)


@pytest.mark.parametrize("adc", [0.0, 0.1])
def test_slots_without_signal_or_noise_have_claims(adc):
    link = loud_air(d=240)
    link = replace(link, noise=0.0, impairments=replace(link.impairments, adc_noise=adc))
    silent = torch.zeros(5, 240)
    received = send(link, 1, silent, drawn(link, 0)[1], everyone(link))
    assert received.mse.s is not None and received.mse.s.claimed == 0
    assert all(error.claimed is not None and error.claimed >= 0 for error in received.mse.p.values())


def test_where_nothing_is_claimed_the_distortion_is_no_part_of_the_correlation():
    """Without mixing amplifiers have no claim; the assumed correlation tells what their distortions add."""
    link = replace(loud_air(d=960), mixing="none")
    statistics = initial_statistics(link)
    for t in range(1, 13):
        received = send(link, t, *alike(link, t, 0.7), everyone(link), statistics)
        statistics = received.correlation_statistics
    assert received.mse.s is not None and received.mse.s.claimed is None
    assert received.correlation[0][0] == pytest.approx(0.7, abs=0.03)
