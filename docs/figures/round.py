"""The picture of a round in docs/concepts.md: `python docs/figures/round.py` writes round.svg beside this file."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
STYLE = {"svg.hashsalt": "airpfed", "font.family": "sans-serif", "font.size": 8.5}


def box(axes: Axes, corner: tuple[float, float], size: tuple[float, float], title: str, text: str, color: str) -> None:
    """Draw a box with a title and lines of text. corner: the lower left one."""
    (x, y), (width, height) = corner, size
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=1.2", fc="white", ec=color, lw=1.4))
    axes.text(x + width / 2, y + height - 2.6, title, ha="center", va="center", color=color, weight="bold")
    axes.text(x + width / 2, y + (height - 4) / 2, text, ha="center", va="center", color="black", linespacing=1.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, curve: float = 0.0) -> None:
    """Draw an arrow."""
    style = f"arc3,rad={curve}"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, connectionstyle=style))


def draw(axes: Axes) -> None:
    """Draw a round from left to right: gradient, radio signal, sum, update; below it the slots in time."""
    devices = [("device 1, task 1", 44), ("device 2, task 1", 29), ("device K, task N", 14)]
    for name, y in devices:
        box(axes, (0, y), (25, 13), name, "batch through the LLM\nadapters' gradient $g_k$", BLUE)
        box(axes, (29, y), (21, 13), "transmit", "normalise, pack: $x_k$\nsend $b_k x_k$", ORANGE)
        arrow(axes, (25, y + 6.5), (29, y + 6.5), GREY)
        arrow(axes, (50, y + 6.5), (67, 37 + (y - 29) * 0.25), ORANGE)
    for k, (_, y) in zip("12K", devices, strict=True):
        axes.text(55, 0.71 * (y + 6.5) + 0.29 * (29.75 + 0.25 * y) + 1.8, f"$h_{k}$", ha="center", color=ORANGE)
    axes.text(12.5, 27.9, "...", ha="center", va="center", color=BLUE)
    box(axes, (67, 29), (22, 16), "the air adds", "$y = \\sum_k h_k b_k x_k + z$\nin every channel use", ORANGE)
    box(axes, (93, 29), (22, 16), "receive", "$m^H y$, unpack, restore:\n$\\hat G^s$ and $\\hat G^p_n$", GREEN)
    box(axes, (93, 50), (22, 13), "update", "$W_s$ with $\\hat G^s$\n$W_{p,n}$ with $\\hat G^p_n$", GREEN)
    arrow(axes, (89, 37), (93, 37), GREY)
    arrow(axes, (104, 45), (104, 50), GREY)
    axes.plot([93, 12.5], [60.5, 60.5], color=GREEN, lw=1.2, ls="--")
    arrow(axes, (12.5, 60.5), (12.5, 57), GREEN)
    axes.text(
        55, 62, "downlink without errors: $W_s$ to all, $W_{p,n}$ to the devices of task n", ha="center", color=GREEN
    )
    slots = [("s-slot: all devices", 26, BLUE), ("p-slot: task 1", 20, GREEN), ("p-slot: task 2", 20, GREEN)]
    x = 18.0
    for name, width, color in [*slots, ("...", 8, GREY), ("p-slot: task N", 20, GREEN)]:
        axes.add_patch(plt.Rectangle((x, 3), width - 0.8, 6, fc=color, alpha=0.15, ec=color))
        axes.text(x + (width - 0.8) / 2, 6, name, ha="center", va="center", color=color)
        x += width
    axes.text(17, 6, "a round on air", ha="right", va="center", color=GREY)
    arrow(axes, (18, 1), (x, 1), GREY)
    axes.text(x + 1, 1, "time", ha="left", va="center", color=GREY)


def main() -> None:
    """Write round.svg."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.2, 5.2), facecolor="white")
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set(xlim=(-1, 118), ylim=(-1, 66))
        axes.axis("off")
        draw(axes)
        figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
