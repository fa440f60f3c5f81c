"""The look of all figures on paper: colours, markers, sizes, axes, legends, and how a drawing becomes files.

matplotlib is imported by the functions that draw, so that importing this module is cheap.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which colour-blind readers can distinguish."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: Sequence[Any] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.2, 1, 1.2)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
)
HATCHES = ("", "////", "||||", "\\\\\\\\", "xxxx", "----", "....")
GREY = "#666666"
"""The colour of what belongs to no series."""
COLUMNS = 2
"""Panels in a row. Two panels of PANEL inches fill the width of a two-column page."""
PANEL = (3.5, 2.4)
"""Width and height of a panel, inches."""
ENDINGS: Mapping[str, Mapping[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
}
"""Ending of a figure's file -> metadata to leave out, because it changes from day to day."""
STYLE: Mapping[Any, Any] = {
    "svg.hashsalt": "airpfed", "pdf.fonttype": 42, "text.parse_math": False, "font.size": 8, "axes.labelsize": 9,
    "axes.titlesize": 8, "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 5,
    "hatch.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#dddddd", "grid.linewidth": 0.5, "savefig.dpi": 200,
}  # fmt: skip


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dash of the index-th series, distinct in black-and-white print too."""
    k = index % len(PALETTE)
    return {"color": PALETTE[k], "marker": MARKERS[k], "linestyle": DASHES[k]}


def bar_style(index: int) -> dict[str, Any]:
    """Colour and hatch of the bars of the index-th series."""
    k = index % len(PALETTE)
    return {"color": PALETTE[k], "hatch": HATCHES[k], "edgecolor": "white", "linewidth": 0}


def make_panels(count: int, y_label: str) -> tuple[Any, list[Any]]:
    """A matplotlib figure with `count` panels on a common vertical axis, and the panels."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * PANEL[0], rows * PANEL[1] + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    for panel in panels[::columns]:
        panel.set_ylabel(y_label)
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def render(draw: Callable[[], Any]) -> dict[str, bytes]:
    """Draw a figure and return its files by ending.

    The files hold no date, and the user's matplotlibrc has no effect: the same drawing gives the same bytes.
    """
    import matplotlib

    files = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = draw()
        for ending, metadata in ENDINGS.items():
            file = io.BytesIO()
            figure.savefig(file, format=ending, metadata=metadata)
            files[ending] = file.getvalue()
    return files


def add_legend(figure: Any, handles: Sequence[Any], panels: int) -> None:
    """Add one legend above all panels; series without a name are left out (matplotlib's own names begin with _)."""
    labelled = [handle for handle in handles if handle.get_label().strip("_") == handle.get_label() != ""]
    if labelled:
        columns = min(len(labelled), min(COLUMNS, panels) + 1)
        figure.legend(handles=labelled, loc="outside upper center", ncols=columns)


def set_vertical_scale(panel: Any, lines: Sequence[Mapping[str, Any]], logarithmic: bool) -> None:
    """Scale the vertical axis: logarithmic if any mean is above zero, or else near the range 0 to 1 of a metric.

    The interval of two seeds can be wider than the metric's range. The figure cuts it; the CSV holds it in full.
    """
    if not logarithmic and any((line["mean"] or 0) > 1.02 for line in lines):  # a perplexity
        return
    if not logarithmic:
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, -0.02), min(high, 1.02))
        return
    if not any((line["mean"] or 0) > 0 for line in lines):
        return
    from matplotlib.ticker import LogFormatter

    class PlainFormatter(LogFormatter):
        """Plain numbers at the ticks that matplotlib labels."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(PlainFormatter(minor_thresholds=(1.5, 0.5)))
    panel.yaxis.set_minor_formatter(PlainFormatter(minor_thresholds=(1.5, 0.5)))
