"""The contract of channel models: our rows keep it, and a model of a user that breaks it is told how."""

from dataclasses import replace

import pytest
import torch

from airpfed import testing
from airpfed.air.channels import CHANNELS, Channel
from airpfed.air.channels.fading import rayleigh, rayleigh_fading
from airpfed.core.errors import UserError

DELAY_SPREAD = {name: {"delay_spread_s": 100e-9} for name in CHANNELS if name.startswith(("cdl", "tdl"))}
CORRELATED = {"delay_spread_s": 100e-9, "time_correlation": 0.9, "round_correlation": 0.5}


@pytest.mark.parametrize("name", [name for name, row in CHANNELS.items() if not row.recorded])
def test_our_channels_keep_the_contract(name):
    if CHANNELS[name].standard:
        pytest.importorskip("sionna.phy")
    report = testing.check_channel(name, **DELAY_SPREAD.get(name, {}))
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["rayleigh", "rician"])
def test_frequencies_and_times_that_correlate(name):
    report = testing.check_channel(name, **CORRELATED)
    assert report.ok, str(report)


def draws(site, t, blocks):
    """Rayleigh fading of one station or several, as a user would write it."""
    return torch.stack(
        [
            torch.cat([rayleigh(gain, site.antennas, rng) for gain in site.gain])
            for rng in (site.rng("mine", t, block) for block in blocks)
        ]
    )


def test_a_users_function():
    report = testing.check_channel(draws)
    assert report.ok, str(report)
    assert str(report).startswith("channel draws: all 10 checks pass")


def stronger(site, t, blocks):
    return 1.1 * draws(site, t, blocks)


def interleaved_antennas(site, t, blocks):
    h = draws(site, t, blocks)
    return h.unflatten(1, (len(site.gain), site.antennas)).transpose(1, 2).flatten(1, 2)


def one_stream_for_all_blocks(site, t, blocks):
    rng = site.rng("mine", t)
    return torch.stack([torch.cat([rayleigh(gain, site.antennas, rng) for gain in site.gain]) for _ in blocks])


def global_generator(site, t, blocks):
    h = draws(site, t, blocks)
    return torch.randn(h.shape, dtype=h.dtype) * site.gain.sqrt().repeat_interleave(site.antennas, 0)


def without_the_seed(site, t, blocks):
    return draws(replace(site, seed=0), t, blocks)


def changes_the_site(site, t, blocks):
    h = draws(site, t, blocks)
    site.gain.mul_(2.0)
    return h


def real_channels(site, t, blocks):
    return draws(site, t, blocks).real[:, :1]


def infinite(site, t, blocks):
    h = draws(site, t, blocks)
    return h / (t != 1000)


def never_silent(site, t, blocks):
    return draws(replace(site, gain=site.gain.clamp_min(1e-13)), t, blocks)


def forgets_its_scattered_gain(site):
    network = rayleigh_fading(site)
    return replace(network, scattered=0.5 * network.scattered)


def single_precision(site):
    network = rayleigh_fading(site)
    return replace(
        network, channel_model=lambda *args: tuple(h.to(torch.complex64) for h in network.channel_model(*args))
    )


def no_network(site):
    return site


@pytest.mark.parametrize(
    ("channel", "check", "words"),
    [
        (stronger, "mean power", "one station: the mean power of channels is 1.2"),
        (interleaved_antennas, "mean power", "two stations: the mean power"),
        (one_stream_for_all_blocks, "a block by itself", "range(2, 4) differ by"),
        (global_generator, "deterministic", "draw from site.rng"),
        (without_the_seed, "seeds differ", "seeds 1 and 2 give the same channels"),
        (changes_the_site, "site is not changed", "one station"),
        (real_channels, "builds a network", "of shape (2, 4, 4), not float64 (2, 1, 4)"),
        (Channel(prepare=single_precision), "shape and type", "(1, 4, 4) torch.complex64; should be (1, 4, 4)"),
        (Channel(prepare=no_network), "builds a network", "returns a ChannelSite; should be a Network"),
        (infinite, "finite", "should draw finite complex channels"),
        (never_silent, "no channel without a gain", "whose mean gain is 0"),
        (Channel(prepare=forgets_its_scattered_gain), "power to be estimated", "line of sight is 1.98"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_named(channel, check, words):
    report = testing.check_channel(channel)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]


def test_a_channel_without_a_function_is_refused():
    with pytest.raises(UserError, match="draw or prepare"):
        testing.check_channel(Channel())
