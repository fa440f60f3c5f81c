"""What the figures of studies and sweeps show: lines chosen and ordered, without drawing."""

import csv
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from airpfed.report.style import ENDINGS

Value = str | int | float | None
Line = Mapping[str, Value]
"""One series at one grid point: grid key -> value as given, its series, numbers; None where there is none."""
Axes = Mapping[str, Sequence[str]]
"""Grid key -> its values as given."""

PLOTTED = ("claimed_db", "pi_db", "pi_db_se")
"""NMSE of Pi: claimed, measured, standard error of the measured; dB."""
MOST_PANELS = 6
UNITS = {"db": "dB", "dbm": "dBm", "hz": "Hz", "m": "m", "gb": "GB"}
WORDS = {"snr": "SNR", "csi": "CSI", "lr": "learning rate"}
SERIES = "series"
"""Column that names a sweep's series."""
SPLIT = "rank_shared+rank_personal"
"""The axis of `--grid adapters.rank_shared/adapters.rank_personal=8/0,4/4`, by its short name."""
LABELS = {
    "antennas": "antennas M", "devices": "devices K a task", "rank": "rank R", SPLIT: "R_s : R_p", "task": "",
    "seconds_on_air": "time on air", "joules_a_device": "energy radiated, mean of devices",
}  # fmt: skip


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
    return [f"{stem}.{ending}" for stem, own in stems for ending in (own, *ENDINGS) if ending]


def drawn(axes: Axes) -> list[str]:
    """The keys that get a figure: those with two values; if there is none, the empty key."""
    return [key for key, values in axes.items() if len(values) > 1] or [""]


def chart_of(lines: Sequence[Line], axes: Axes, key: str, series: str = "design") -> Chart:
    """Choose and order the lines of a key's figure: by panel, by series, by value.

    More than MOST_PANELS settings of the other axes are cut to the first, and the title says so.
    """
    others = [other for other in axes if other != key]
    settings = list(itertools.product(*(axes[other] for other in others)))
    values = tuple(axes.get(key, ()))
    where = scale(key, values)
    ordered = sorted(values, key=lambda value: where[values.index(value)]) if where else list(values)
    rank = {value: i for i, value in enumerate(ordered)}
    designs = list(dict.fromkeys(line[series] for line in lines))
    panels = []
    for setting in settings if len(settings) <= MOST_PANELS else settings[:1]:
        mine = [line for line in lines if all(line[k] == v for k, v in zip(others, setting, strict=True))]
        mine.sort(key=lambda line: (designs.index(line[series]), rank[str(line[key])] if key else 0))
        varied = [
            told(short(k, axes), told_value(k, v) if k == SPLIT else v)
            for k, v in zip(others, setting, strict=True)
            if len(axes[k]) > 1
        ]
        title = ", ".join(varied) + (f" (first of {len(settings)} settings)" if len(settings) > MOST_PANELS else "")
        panels.append((title, tuple(mine)))
    return Chart(stem_of(key, axes), key, tuple(ordered), tuple(panels))


def arranged(lines: Sequence[Line], axes: Axes, key: str, measure: str) -> Chart:
    """A measure's figure over a key. A series: of the first other axis that holds names, or else of the first other."""
    others = [other for other in axes if other != key and len(axes[other]) > 1]
    series = next((other for other in others if not scale(other, axes[other])), next(iter(others), ""))
    named = [{**line, SERIES: told_value(series, str(line[series])) if series else ""} for line in lines]
    chart = chart_of(named, {axis: values for axis, values in axes.items() if axis != series}, key, SERIES)
    return replace(chart, name=chart.name.replace("link", measure.replace(" ", "-"), 1))


def scale(key: str, values: Sequence[str]) -> list[float]:
    """Where values lie on an axis of numbers; empty where they are names.

    Splits of one rank, "6/2", lie at their share R_s/R.
    """
    if numeric(values):
        return [float(value) for value in values]
    pairs = [value.split("/") for value in values] if key == SPLIT else []
    ranks = [(int(s), int(p)) for s, p in pairs]
    return [s / (s + p) for s, p in ranks] if len({sum(pair) for pair in ranks}) == 1 else []


def told_value(key: str, value: str) -> str:
    """A value as a reader would write it: splits as 6:2; a number alone with what it is of."""
    if key == SPLIT:
        return value.replace("/", ":")
    return told(key, value) if numeric([value]) else value


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
    return LABELS.get(name, f"{words} ({unit})" if unit else words)


def told(name: str, value: str) -> str:
    """A setting in words: `SNR 10 dB`."""
    words, unit = in_words(name)
    return f"{words} {value} {unit}".strip()


def in_words(name: str) -> tuple[str, str]:
    """The words and the unit of a key's last part; no unit: empty."""
    words = name.replace(".", " ").split("_")
    unit = UNITS.get(words[-1], "") if len(words) > 1 else ""
    return " ".join(WORDS.get(word, word) for word in (words[:-1] if unit else words)), unit
