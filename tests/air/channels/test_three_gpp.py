"""3GPP channels through Sionna: their streams, and what happens without Sionna."""

import sys

import pytest
import torch

from airpfed.config.schema import RadioSettings
from airpfed.core.errors import UserError
from airpfed.experiment.build.uplink import build_network

TASK_OF = torch.tensor([0, 0, 0, 1, 1])

pytestmark = pytest.mark.usefixtures("sionna")


@pytest.fixture(scope="module")
def sionna():
    """Sionna, imported by the process that tests it only."""
    return pytest.importorskip("sionna.phy")


def made(channel: str, antennas: int = 4, seed: int = 3, **changes):
    options = {} if channel in ("umi", "uma", "rma") else {"delay_spread_s": 100e-9}
    if "speed_mps" in changes:
        options["speed_mps"] = changes.pop("speed_mps")
    changes = {"coherence_symbols": 20_000, "antennas": antennas, "min_distance_m": 40.0, **changes}
    radio = RadioSettings(channel={"name": channel, **options}, **changes)
    return build_network(radio, seed, TASK_OF, 2)


@pytest.mark.parametrize("channel", ["umi", "cdl_b", "tdl_a"])
def test_blocks_are_the_same_whichever_are_asked_for(channel):
    place = made(channel, subcarrier_groups=4, speed_mps=3.0)
    every, _ = place.channel_model(3, 2, range(12))
    torch.testing.assert_close(place.channel_model(3, 2, range(5, 7))[0], every[5:7])
    for other in (
        every[1],
        every[4],
        place.channel_model(3, 3, range(1))[0][0],
    ):  # another group, a later time, another round
        assert float((every[0] - other).norm() / every[0].norm()) > 0.01


def test_at_rest_a_round_s_channel_stands_still():
    every, _ = made("umi", speed_mps=0.0).channel_model(3, 1, range(4))
    torch.testing.assert_close(every[1:], every[:1].expand(3, -1, -1))


def test_two_edges_hear_through_channels_of_their_own():
    place = made("umi", topology="joint", edge_distance_m=200.0)
    h, _ = place.channel_model(3, 1, range(1))
    assert h.shape == (1, 8, 5) and place.gain.shape == (2, 5)
    own = place.gain.gather(0, TASK_OF[None])
    assert float(own.median()) > float(place.gain.median())


def test_nothing_outside_is_seeded_by_it():
    """Torch's own generator goes on as if nothing had happened."""
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    made("umi").channel_model(3, 1, range(2))
    assert torch.equal(torch.randn(3), expected)


def test_drops_differ_and_repeat():
    one, again, other = made("umi"), made("umi"), made("umi", drop=1)
    assert torch.equal(one.gain, again.gain) and torch.equal(
        one.channel_model(3, 1, range(1))[0], again.channel_model(3, 1, range(1))[0]
    )
    assert (one.gain / other.gain - 1).abs().min() > 1e-3


def test_without_sionna_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sionna", None)
    monkeypatch.setitem(sys.modules, "sionna.phy", None)
    with pytest.raises(UserError, match=r'pip install "airpfed\[sionna\]"'):
        made("umi")
