"""Length buckets: samples of like length are computed together, so that little padding is."""

from collections.abc import Sequence

PASS_TOKENS = {"cpu": 16, "cuda": 4096}
"""What one more pass over the model costs by itself, in tokens' worth of arithmetic: launching its operations."""

FAR = 1536
"""Tokens of a row at which attention, which reads all of it, costs about as much as everything else."""


def buckets(lengths: Sequence[Sequence[int]], pass_tokens: int) -> list[tuple[int, int]]:
    """Columns [first, last) to be computed together, at the least padded tokens plus `pass_tokens` a bucket.

    lengths: tokens of each device's samples, ascending, equally many a device. In a bucket all devices have equally
    many samples, as the stacked layers need, and all are padded to the longest.
    """
    widths = [max(column) for column in zip(*lengths, strict=True)]
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for last in range(1, len(widths) + 1):
        ways = [
            (best[first][0] + len(lengths) * (last - first) * widths[last - 1] + pass_tokens, first)
            for first in range(last)
        ]
        cost, first = min(ways)
        best.append((cost, [*best[first][1], (first, last)]))
    return best[-1][1]


def padded_cost(lengths: Sequence[Sequence[int]], cuts: Sequence[tuple[int, int]], pass_tokens: int) -> int:
    """What buckets cost, as `buckets` counts."""
    widest = [max(own[last - 1] for own in lengths) for _, last in cuts]
    return sum(
        len(lengths) * (last - first) * width + pass_tokens for (first, last), width in zip(cuts, widest, strict=True)
    )


def packed_cost(lengths: Sequence[int], pass_tokens: int) -> float:
    """What one pass over samples end to end costs: their tokens, and attention in rows as long as the longest."""
    return sum(lengths) + len(lengths) * max(lengths) ** 2 / FAR + pass_tokens
