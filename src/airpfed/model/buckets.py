"""Length buckets: samples of like length are computed together, so that little padding is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

Price = Callable[[int, int], int]
"""(rows, width) -> what computing so many rows of that width in one piece costs."""


def buckets(widths: Sequence[int], rows: Sequence[int], price: Price) -> list[tuple[int, int]]:
    """Columns [first, last) to be computed together, all as wide as the widest of them, at the least total price.

    widths: of each column, ascending. rows: that each column has.
    """
    begins = [0]
    for count in rows:
        begins.append(begins[-1] + count)
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for last in range(1, len(widths) + 1):
        ways = [
            (best[first][0] + price(begins[last] - begins[first], widths[last - 1]), first) for first in range(last)
        ]
        cost, first = min(ways)
        best.append((cost, [*best[first][1], (first, last)]))
    return best[-1][1]


def batched(items: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    """Consecutive tuples of at most `size` items."""
    rest = iter(items)
    while part := tuple(islice(rest, size)):
        yield part
