"""Decibels at the edge."""

import math

import pytest

from airpfed.core import units


@pytest.mark.parametrize(("decibels", "ratio"), [(0.0, 1.0), (10.0, 10.0), (-30.0, 1e-3), (3.0, 1.99526)])
def test_decibels_and_ratios_are_inverse(decibels, ratio):
    assert units.from_db(decibels) == pytest.approx(ratio, rel=1e-5)
    assert units.to_db(units.from_db(decibels)) == pytest.approx(decibels, abs=1e-12)


def test_no_power_is_minus_infinity():
    assert units.to_db(0.0) == -math.inf


@pytest.mark.parametrize(("dbm", "watts"), [(30.0, 1.0), (20.0, 0.1), (0.0, 1e-3)])
def test_dbm_are_relative_to_a_milliwatt(dbm, watts):
    assert units.dbm_to_watts(dbm) == pytest.approx(watts)


def test_thermal_noise_of_20_megahertz():
    """-174 dBm/Hz + 73.01 dB + 7 dB = -93.99 dBm; also k T B at 290 K within 0.03 dB."""
    watts = units.thermal_noise_watts(20e6, 7.0)
    assert 10 * math.log10(watts / 1e-3) == pytest.approx(-93.99, abs=0.005)
    assert watts == pytest.approx(1.380649e-23 * 290 * 20e6 * units.from_db(7.0), rel=0.01)
