"""Figures of the theory beside a run, each from the run's records and its probe."""

from collections.abc import Callable, Sequence
from typing import Any

from airpfed.core.run_files import Probe, RoundRecord, Theory
from airpfed.report.figures import Figure, Series, chart, colour
from airpfed.report.style import PALETTE
from airpfed.theory.verification import applicable_bound, average_bounds

CAUSES = {"gap": "loss gap", "sgd": "SGD noise", "heterogeneity": "data heterogeneity", "channel": "channel"}
"""Parts of Psi_T in the order they are stacked, with their names."""


def rows_of(records: Sequence[RoundRecord]) -> list[tuple[int, Theory]]:
    """Round and row of every metered round."""
    return [(record.round, record.theory) for record in records if record.theory]


def decrease(records: Sequence[RoundRecord], probe: Probe) -> Figure:
    """Change of F, measured and as bounded; rounds in which an assumption failed have an open marker."""
    rows = rows_of(records)
    rounds = [number for number, _ in rows]
    name = "(41)" if probe.unbiased else "ours, for biased sums"
    marks = {"symbol": ["circle-open" if row.failed else "circle" for _, row in rows], "size": 8}
    failed = ["failed: " + ", ".join(row.failed) if row.failed else "assumptions held" for _, row in rows]
    measured: dict[str, Any] = {**colour(0), "marker": {"color": PALETTE[0], **marks}, "text": failed}
    series: list[Series] = [
        ("measured", rounds, [row.change for _, row in rows], measured),
        ("mean over channel draws", rounds, [row.change_mean for _, row in rows], colour(5, "dot")),
        ("(38), E1 + E2 + E3 + E4", rounds, [row.bounds.descent for _, row in rows], colour(2)),
        (name, rounds, [applicable_bound(row, probe) for _, row in rows], colour(1)),
    ]
    if probe.unbiased:
        series += [
            ("(41), A3 as printed", rounds, [row.bounds.one_round_printed for _, row in rows], colour(4, "dot")),
            ("ours", rounds, [row.bounds.one_round_ours for _, row in rows], colour(3)),
        ]
    return chart("Change of F in a round, measured and bounded", "round", "F after - F before, nats", series)


def shares(records: Sequence[RoundRecord], probe: Probe) -> Figure:
    """Who causes Psi_T, stacked, if the run had stopped at that round."""
    found = average_bounds(records, probe)
    rounds = [record.round for record in records]
    series: list[Series] = [
        (
            label,
            rounds,
            [one.shares[cause] if one else None for one in found],
            {"mode": "none", "stackgroup": "all", "fillcolor": PALETTE[index]},
        )
        for index, (cause, label) in enumerate(CAUSES.items())
    ]
    return chart("Shares of the average bound", "rounds T", "share of \u03a8_T", series, range=[0, 1])


def average(records: Sequence[RoundRecord], probe: Probe) -> Figure:
    """Psi_T over T beside the mean of the measured Lambda."""
    found = average_bounds(records, probe)
    rows, total, means = rows_of(records), 0.0, []
    for count, (_, row) in enumerate(rows, 1):
        total += row.gradient
        means.append(total / count)
    series: list[Series] = [
        ("\u03a8_T", [record.round for record in records], [one.total if one else None for one in found], colour(1)),
        ("mean of metered \u039b", [number for number, _ in rows], means, colour(0)),
        ("\u039b of a round", [number for number, _ in rows], [row.gradient for _, row in rows], colour(5, "dot")),
    ]
    return chart("Average bound and gradients", "rounds T", "squared norm", series, type="log")


THEORY: dict[str, Callable[[Sequence[RoundRecord], Probe], Figure]] = {
    "theory-decrease": decrease,
    "theory-shares": shares,
    "theory-average": average,
}
