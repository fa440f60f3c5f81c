"""The grid: every use has a place of its own, and the count of symbols is that of the places."""

from hypothesis import given
from hypothesis import strategies as st

from airpfed.air.grid import ResourceGrid


@given(
    groups=st.integers(1, 5),
    width=st.integers(1, 8),
    coherence_symbols=st.integers(1, 40),
    uses=st.integers(1, 400),
    first=st.integers(0, 399),
)
def test_places(groups: int, width: int, coherence_symbols: int, uses: int, first: int) -> None:
    grid, first = ResourceGrid(coherence_symbols, groups, groups * width), first % uses
    symbol, subcarrier = grid.positions(0, uses)
    assert len({*zip(symbol.tolist(), subcarrier.tolist(), strict=True)}) == uses
    assert int(symbol.max()) + 1 == grid.num_symbols(uses)
    assert set((subcarrier // width).tolist()) <= set(range(groups))
    later_symbol, later_subcarrier = grid.positions(first, uses - first)
    assert later_symbol.tolist() == symbol[first:].tolist()
    assert later_subcarrier.tolist() == subcarrier[first:].tolist()


def test_one_group_fills_symbol_by_symbol() -> None:
    symbol, subcarrier = ResourceGrid(7, 1, 4).positions(2, 8)
    assert symbol.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert subcarrier.tolist() == [2, 3, 0, 1, 2, 3, 0, 1]
