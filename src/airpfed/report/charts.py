"""What a link study's figures show: lines chosen and ordered, without drawing."""

import csv
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Value = str | float | None
Line = Mapping[str, Value]
"""One design at one grid point: grid key -> value as given, "design", and PLOTTED; None where there is no number."""
Axes = Mapping[str, Sequence[str]]
"""Grid key -> its values as given."""

PLOTTED = ("claimed_db", "pi_db", "pi_db_se")
"""NMSE of Pi: claimed, measured, standard error of the measured; dB."""
MOST_PANELS = 6
UNITS = {"db": "dB", "dbm": "dBm", "hz": "Hz", "m": "m", "gb": "GB"}
WORDS = {"snr": "SNR", "csi": "CSI", "lr": "learning rate"}


@dataclass(frozen=True)
class Chart:
    """What one figure shows: `key` on the horizontal axis (empty: the designs), a panel a setting of the other axes.

    values: of the key, as given. panels: (title, lines).
    """

    name: str
    key: str
    values: tuple[str, ...]
    panels: tuple[tuple[str, tuple[Line, ...]], ...]


def text(columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Lines as CSV, every digit of every number; None is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([line[column] for column in columns] for line in lines)
    return file.getvalue()


def names(axes: Axes) -> list[str]:
    """The files that `files` makes for a grid."""
    stems = [(stem_of(key, axes), "csv" if key else "") for key in drawn(axes)]
    return [f"{stem}.{ending}" for stem, own in stems for ending in (own, "svg", "png") if ending]


def drawn(axes: Axes) -> list[str]:
    """The keys that get a figure: those with two values; if there is none, the empty key."""
    return [key for key, values in axes.items() if len(values) > 1] or [""]


def chart_of(lines: Sequence[Line], axes: Axes, key: str) -> Chart:
    """Choose and order the lines of a key's figure: by panel, by design, by value.

    More than MOST_PANELS settings of the other axes are cut to the first, and the title says so.
    """
    others = [other for other in axes if other != key]
    settings = list(itertools.product(*(axes[other] for other in others)))
    values = tuple(axes.get(key, ()))
    ordered = sorted(values, key=float) if numeric(values) else list(values)
    designs = list(dict.fromkeys(line["design"] for line in lines))
    panels = []
    for setting in settings if len(settings) <= MOST_PANELS else settings[:1]:
        mine = [line for line in lines if all(line[k] == v for k, v in zip(others, setting, strict=True))]
        mine.sort(key=lambda line: (designs.index(line["design"]), ordered.index(str(line[key])) if key else 0))
        varied = [told(short(k, axes), v) for k, v in zip(others, setting, strict=True) if len(axes[k]) > 1]
        title = ", ".join(varied) + (f" (first of {len(settings)} settings)" if len(settings) > MOST_PANELS else "")
        panels.append((title, tuple(mine)))
    return Chart(stem_of(key, axes), key, tuple(ordered), tuple(panels))


def numeric(values: Sequence[str]) -> bool:
    """Whether there are values and all of them are finite numbers."""
    try:
        return bool(values) and all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def stem_of(key: str, axes: Axes) -> str:
    """A figure's file name without its ending: link, or link-<short key>."""
    return "link-" + re.sub(r"[^\w-]", "-", short(key, axes)) if key else "link"


def short(key: str, axes: Axes) -> str:
    """The last part of a key, or as many of the last as no other key of the grid ends in."""
    parts = key.split(".")
    tails = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
    return next(tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in axes) == 1 or tail == key)


def label(name: str) -> str:
    """A key's last part in words, its unit in brackets: `snr_db` -> `SNR (dB)`."""
    words, unit = in_words(name)
    return f"{words} ({unit})" if unit else words


def told(name: str, value: str) -> str:
    """A setting in words: `SNR 10 dB`."""
    words, unit = in_words(name)
    return f"{words} {value} {unit}".strip()


def in_words(name: str) -> tuple[str, str]:
    """The words and the unit of a key's last part; no unit: empty."""
    words = name.replace(".", " ").split("_")
    unit = UNITS.get(words[-1], "") if len(words) > 1 else ""
    return " ".join(WORDS.get(word, word) for word in (words[:-1] if unit else words)), unit
