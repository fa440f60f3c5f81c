"""The radio's settings as objects: layouts, gains, noise, impairments."""

import math

import pytest
import torch

from airpfed.air import geometry
from airpfed.air.impairments import NONE, Impairments
from airpfed.config.schema import RadioSettings
from airpfed.experiment.build.uplink import build_network, impairments_of, personal_rows_of

TASK_OF = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])


def made(seed: int = 0, **changes):
    return build_network(RadioSettings(**changes), seed, TASK_OF, 3)


def test_a_single_cell_has_its_station_at_the_centre():
    place = made(cell_radius_m=50.0, min_distance_m=5.0)
    away = place.devices.square().sum(1).sqrt()
    assert (place.stations == 0).all() and place.gain.shape == (1, 8)
    assert away.min() >= 5 and away.max() <= 50
    torch.testing.assert_close(place.gain[0], geometry.log_distance_gain(away, 3.5e9, 3.0))


@pytest.mark.parametrize("topology", ["joint", "two_hop"])
def test_devices_stand_in_a_disc_round_their_own_edge(topology):
    place = made(topology=topology, cell_radius_m=50.0, min_distance_m=5.0, edge_distance_m=300.0)
    assert place.stations.shape == (3, 2) and place.gain.shape == (3, 8)
    torch.testing.assert_close(place.stations.square().sum(1).sqrt(), torch.full((3,), 300.0).double())
    apart = geometry.distances(place.stations, place.devices)
    assert (apart.argmin(0) == TASK_OF).all() and apart.amin(0).max() <= 50


def test_the_cell_free_setting_of_the_book():
    """Bjornson and Sanguinetti: 400 access points on 1 km^2 with wrap-around, -30.5 - 36.7 log10 d, 10 m higher."""
    place = made(layout="cell_free", antennas=1, height_m=10.0, path_loss_1m_db=30.5, path_loss_exponent=3.67)
    assert place.stations.shape == (400, 2) and place.gain.shape == (400, 8)
    d = geometry.distances(place.stations, place.devices, 10.0, 1000.0)
    torch.testing.assert_close(10 * place.gain.log10(), -30.5 - 36.7 * d.log10())
    h, _ = place.channel_model(0, 1, range(2))
    assert h.shape == (2, 400, 8)


def test_shadowing_moves_gains_and_nothing_else():
    plain, shadowed = made(), made(shadowing_db=4.0)
    assert torch.equal(plain.devices, shadowed.devices)
    db = 10 * (shadowed.gain / plain.gain).log10()
    assert 1 < float(db.std()) < 8


def test_a_drop_is_a_place_of_its_own_and_repeats():
    assert torch.equal(made(drop=2).devices, made(drop=2).devices)
    assert not torch.allclose(made(drop=2).devices, made(drop=1).devices)
    assert not torch.allclose(made(drop=1).devices, made(seed=1, drop=1).devices)
    one, other = made(drop=1).channel_model(0, 1, range(1))[0], made(drop=2).channel_model(0, 1, range(1))[0]
    assert not torch.allclose(one / one.abs().mean(), other / other.abs().mean())


def test_rician_keeps_the_mean_gain():
    place = made(channel="rician", antennas=8)
    h, los = place.channel_model(0, 1, range(3000))
    ratio = (h.abs().square().mean(1) / place.gain[0]).mean(0)
    assert ((ratio - 1).abs() * (8 * 3000) ** 0.5).max() < 5 * 1.5
    k = los[0].abs().square().mean(0) / place.scattered[0]
    torch.testing.assert_close(k, torch.full((8,), 10**0.3).double())


def test_impairments_are_linear_and_off_by_default():
    assert impairments_of(RadioSettings()) == NONE
    found = impairments_of(RadioSettings(phase_error_deg=90.0, clipping_db=3.0, outage=0.1, fade_truncation_db=10.0))
    assert vars(found) == pytest.approx(vars(Impairments(math.pi / 2, 10**0.3, 0.1, 0.1)))


def test_groups_of_one_kind_share_a_place_in_the_memory():
    block_ranges = dict.fromkeys(("A", "B", "head"), (0, 4))
    assert personal_rows_of({"A": block_ranges["A"], "B": block_ranges["B"]}, block_ranges) == (0, 1, 2)
    assert personal_rows_of({"A": block_ranges["A"], "B": block_ranges["B"]}, {"head": block_ranges["head"]}) == (2,)
    assert personal_rows_of({"B": block_ranges["B"]}, {"A": block_ranges["A"], "B": block_ranges["B"]}) == (1, 0)
