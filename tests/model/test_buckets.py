"""Length buckets: a partition of the columns, the cheapest of all."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from airpfed.model.tokens import length_buckets


@settings(deadline=None)
@given(data=st.data(), columns=st.integers(1, 6), once=st.integers(0, 60), power=st.integers(1, 2))
def test_the_cheapest_cuts(data: st.DataObject, columns: int, once: int, power: int) -> None:
    widths = data.draw(st.lists(st.integers(1, 40), min_size=columns, max_size=columns).map(sorted))
    rows = data.draw(st.lists(st.integers(1, 5), min_size=columns, max_size=columns))

    def price(count: int, width: int) -> int:
        return count * width**power + once

    def total(cuts: list[tuple[int, int]]) -> int:
        return sum(price(sum(rows[a:b]), max(widths[a:b])) for a, b in cuts)

    found = length_buckets(widths, rows, price)
    assert found[0][0] == 0 and found[-1][1] == columns
    assert all(one[1] == other[0] and one[0] < one[1] for one, other in pairwise([*found, (columns, columns + 1)]))
    ways = []
    for mask in range(1 << (columns - 1)):
        edges = [0, *[j + 1 for j in range(columns - 1) if mask >> j & 1], columns]
        ways.append(total(list(pairwise(edges))))
    assert total(found) == min(ways)
