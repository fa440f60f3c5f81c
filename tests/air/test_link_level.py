"""Random symbols of a link study lie where those of a round may lie."""

from dataclasses import replace

import pytest
import torch

from airpfed.air.grid import ResourceGrid
from airpfed.air.impairments import Impairments
from airpfed.air.link_level import draw_segment, drop_positions, median_largest_symbol
from airpfed.config.settings_file import read_settings
from airpfed.planning.channel_study import schedule_full_round
from airpfed.planning.link_study import draw_drops, link_of
from support.uplinks import large_air

SHORT_BLOCKS = """
[[tasks]]
name = "a"
devices = 3

[radio]
antennas = 4
subcarriers = 64
subcarrier_groups = 2
coherence_symbols = 96
pilots = "perfect"
carrier_offset_hz = 100.0
"""


@pytest.mark.parametrize(
    ("uses", "block", "groups", "subcarriers"),
    [
        (2000, 100_000, 32, 1024),
        (2000, 20_000, 1, 1024),
        (640, 3000, 2, 64),
        (300, 500, 1, 1024),
        (70, 80, 1, 40),
        (32, 100_352, 1, 1024),
        (64, 100_352, 1, 1024),
        (17_312, 34_332, 1, 1024),
        (500, 626, 32, 1024),
        (500, 1900, 1, 1024),
    ],
)
def test_the_uses_of_a_drop_lie_evenly_in_a_block_that_changes(uses, block, groups, subcarriers):
    """Each on a place of its own; means and spreads over time and frequency are those of the whole block."""
    link = large_air("uniform_forcing", impairments=Impairments(carrier_offset_hz=10.0), subcarriers=subcarriers)
    link = replace(link, coherence_symbols=block, subcarrier_groups=groups)
    places, width = drop_positions(link, 2, uses), subcarriers // groups
    symbol, subcarrier = (each.reshape(2, uses) for each in (places.symbol, places.subcarrier))
    assert len(set(zip(places.symbol.tolist(), places.subcarrier.tolist(), strict=True))) == 2 * uses
    assert torch.equal(symbol[1] - symbol[0], (places.first_symbol[1] - places.first_symbol[0]).expand(uses))
    assert torch.equal(subcarrier[0] % width, subcarrier[1] % width)
    assert all(len(set((row // width).tolist())) == 1 for row in subcarrier), "a block is of one group"
    every = torch.arange(block)
    for chosen, whole in ((symbol[0], every // width), (subcarrier[0] % width, every % width)):
        (mean, expected), (spread, right) = (
            (f((chosen + 0.5).double()), f((whole + 0.5).double())) for f in (torch.mean, torch.var)
        )
        assert abs(mean / expected - 1) < 0.05 and abs(spread - right) <= 0.1 * right


@pytest.mark.parametrize(("uses", "block", "groups"), [(2000, 3552, 32), (10_000, 3552, 32), (10_000, 20_000, 1)])
def test_the_largest_symbol_is_that_of_gaussian_signals_on_the_grid(uses, block, groups):
    """A short slot over many groups fills a few uses of many symbols, whose means vary more."""
    grid = ResourceGrid(block, groups, 1024)
    index, rng = grid.positions(0, uses)[0], torch.Generator().manual_seed(4)
    power = torch.empty(600, uses, dtype=torch.float64).exponential_(generator=rng)
    count = torch.bincount(index).clamp(min=1)
    means = torch.zeros(600, len(count), dtype=torch.float64).index_add_(1, index, power) / count
    assert median_largest_symbol(grid, uses) == pytest.approx(float(means.amax(1).median()), rel=0.02)


def test_drops_cover_the_band():
    """Timing errors grow towards the edges: with all drops in one group of subcarriers they would be another's."""
    link = large_air("uniform_forcing", impairments=Impairments(timing_drift=0.1), subcarriers=64)
    link = replace(link, coherence_symbols=400, subcarrier_groups=8)
    groups = drop_positions(link, 40, 200).subcarrier.reshape(40, 200)[:, 0] // 8
    count = torch.bincount(groups, minlength=8)
    assert int(count.min()) >= 4 and int(count.max()) <= 6


def test_the_uses_of_a_drop_are_the_first_ones_where_nothing_changes():
    link = replace(large_air("uniform_forcing", subcarriers=64), coherence_symbols=1000)
    places = drop_positions(link, 2, 100)
    assert places.symbol.tolist()[:100] == [use // 64 for use in range(100)]
    assert places.subcarrier.tolist()[100:] == [use % 64 for use in range(100)]


def test_a_drop_ends_with_its_block(tmp_path):
    """Phases turn from the start of a block: a drop longer than a block would have those of no block."""
    (tmp_path / "link.toml").write_text(SHORT_BLOCKS)
    settings = read_settings(tmp_path / "link.toml")
    drops, link = draw_drops(settings, link_of(settings), 3)
    for slot in schedule_full_round(link, drops):
        segment = draw_segment(link, slot, drops, 1000, 0.0)
        assert [end - begin for begin, end in segment.block_ranges] == [96] * 3
        assert int((segment.positions.symbol.reshape(3, -1) - segment.positions.first_symbol[:, None]).max()) == 2
