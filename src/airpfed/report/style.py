"""The one look of every figure on paper: colours, marks, sizes, and how a drawing becomes files.

matplotlib is loaded when one is drawn.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by colour-blind readers."""
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
"""What belongs to no series."""
COLUMNS = 2
"""Panels beside each other: two of PANEL fill the width of a two-column page."""
PANEL = (3.5, 2.4)
"""Width and height of a panel, inches."""
ENDINGS: Mapping[str, Mapping[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
}
"""The files of a figure, and what of their metadata would differ from day to day."""
STYLE: Mapping[Any, Any] = {
    "svg.hashsalt": "airpfed", "pdf.fonttype": 42, "text.parse_math": False, "font.size": 8, "axes.labelsize": 9,
    "axes.titlesize": 8, "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 5,
    "hatch.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#dddddd", "grid.linewidth": 0.5, "savefig.dpi": 200,
}  # fmt: skip


def line(index: int) -> dict[str, Any]:
    """Colour, mark and dash of the index-th series: told apart in print without colours too."""
    k = index % len(PALETTE)
    return {"color": PALETTE[k], "marker": MARKERS[k], "linestyle": DASHES[k]}


def bar(index: int) -> dict[str, Any]:
    """Colour and hatch of the index-th series' bars."""
    k = index % len(PALETTE)
    return {"color": PALETTE[k], "hatch": HATCHES[k], "edgecolor": "white", "linewidth": 0}


def panels(count: int, y: str) -> tuple[Any, list[Any]]:
    """A matplotlib figure with `count` panels, and the panels; y: label of the left ones' common axis."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * PANEL[0], rows * PANEL[1] + 0.5), layout="constrained")
    places = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    for place in places[::columns]:
        place.set_ylabel(y)
    for place in places[count:]:
        place.remove()
    return figure, places[:count]


def rendered(draw: Callable[[], Any]) -> dict[str, bytes]:
    """A drawing by its files' endings: without date, the same bytes whatever the user's matplotlibrc says."""
    import matplotlib

    found = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = draw()
        for ending, metadata in ENDINGS.items():
            file = io.BytesIO()
            figure.savefig(file, format=ending, metadata=metadata)
            found[ending] = file.getvalue()
    return found


def legend(figure: Any, handles: Sequence[Any], count: int) -> None:
    """One legend above all `count` panels; none of series without a name (matplotlib's own begin with _)."""
    named = [handle for handle in handles if handle.get_label().strip("_") == handle.get_label() != ""]
    if named:
        columns = min(len(named), min(COLUMNS, count) + 1)
        figure.legend(handles=named, loc="outside upper center", ncols=columns)


def upright(place: Any, lines: Sequence[Mapping[str, Any]], logarithmic: bool) -> None:
    """The vertical axis: logarithmic where any mean is above zero; of a metric, never far outside 0 to 1.

    An interval of two seeds can be wider than the metric's range: it is cut at the edge, its CSV has it whole.
    """
    if not logarithmic:
        low, high = place.get_ylim()
        place.set_ylim(max(low, -0.02), min(high, 1.02))
    elif any((line["mean"] or 0) > 0 for line in lines):
        place.set_yscale("log")
        place.yaxis.set_major_formatter(plain_logarithms())
        place.yaxis.set_minor_formatter(plain_logarithms())


def plain_logarithms() -> Any:
    """Labels of a logarithmic axis at the ticks matplotlib would label, as plain numbers."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain(minor_thresholds=(1.5, 0.5))


def quantity(axis: Any, unit: str) -> None:
    """Ticks with the unit's prefix, 20 ms."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(unit))
