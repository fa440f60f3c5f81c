"""Random symbols of a link study lie where those of a round may lie."""

from dataclasses import replace

import pytest
import torch

from airpfed.air.impairments import Impairments
from airpfed.air.link_level import drop_positions
from support.uplinks import large_air


@pytest.mark.parametrize(
    ("uses", "block", "groups", "subcarriers"),
    [(2000, 100_000, 32, 1024), (2000, 20_000, 1, 1024), (640, 3000, 2, 64), (300, 500, 1, 1024), (70, 80, 1, 40)],
)
def test_the_uses_of_a_drop_lie_evenly_in_a_block_that_changes(uses, block, groups, subcarriers):
    """Each on a place of its own; means and mean squares over time and frequency are those of the whole block, to a symbol."""
    link = large_air("uniform_forcing", impairments=Impairments(carrier_offset_hz=10.0), subcarriers=subcarriers)
    link = replace(link, coherence_symbols=block, subcarrier_groups=groups)
    places, width = drop_positions(link, 2, uses), subcarriers // groups
    symbol, subcarrier = (each.reshape(2, uses) for each in (places.symbol, places.subcarrier))
    assert len(set(zip(places.symbol.tolist(), places.subcarrier.tolist(), strict=True))) == 2 * uses
    assert torch.equal(symbol[1] - symbol[0], (places.first_symbol[1] - places.first_symbol[0]).expand(uses))
    assert torch.equal(subcarrier[0], subcarrier[1])
    every = torch.arange(block)
    for chosen, whole in ((symbol[0], every // width), (subcarrier[0], every % width)):
        for power in (1, 2):
            mean, expected = ((each + 0.5).pow(power).mean() for each in (chosen, whole))
            assert abs(mean / expected - 1) < 0.05


def test_the_uses_of_a_drop_are_the_first_ones_where_nothing_changes():
    link = replace(large_air("uniform_forcing", subcarriers=64), coherence_symbols=1000)
    places = drop_positions(link, 2, 100)
    assert places.symbol.tolist()[:100] == [use // 64 for use in range(100)]
    assert places.subcarrier.tolist()[100:] == [use % 64 for use in range(100)]
