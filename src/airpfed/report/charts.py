"""Charts before they are drawn: lines of a study or sweep, selected and ordered by panel, series and value."""

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
"""One series at one point of a grid: grid key -> value as given, series, numbers. None stands for a missing number."""
Axes = Mapping[str, Sequence[str]]
"""Grid key -> its values as given."""

LINK_COLUMNS = ("claimed_db", "pi_db", "pi_db_se")
"""NMSE of Pi in dB: claimed, measured, and the standard error of the measured."""
MAX_PANELS = 6
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
    """Content of one figure: `key` on the horizontal axis, and a panel for each setting of the other axes.

    key: a grid key, or empty where the designs are on the horizontal axis. values: the key's values as the user wrote
    them. panels: (title, lines).
    """

    name: str
    key: str
    values: tuple[str, ...]
    panels: tuple[tuple[str, tuple[Line, ...]], ...]


def to_csv(columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Write lines as CSV with all digits of all numbers; None becomes an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([line[column] for column in columns] for line in lines)
    return file.getvalue()


def file_names(axes: Axes) -> list[str]:
    """The names of the files that `plots.link_files` makes for a grid."""
    return [
        f"{file_stem(key, axes)}.{ending}"
        for key in figure_keys(axes)
        for ending in (*(["csv"] if key else []), *ENDINGS)
    ]


def figure_keys(axes: Axes) -> list[str]:
    """The keys that get a figure: those with at least two values, or the empty key if there are none."""
    return [key for key, values in axes.items() if len(values) > 1] or [""]


def chart_of(lines: Sequence[Line], axes: Axes, key: str, series: str = "design") -> Chart:
    """Select the lines of the figure with `key` on its horizontal axis, ordered by panel, series and value.

    Each combination of values of the other axes is a panel. If there are more than MAX_PANELS combinations, only the
    first is drawn, and its title says so.
    """
    other_keys = [other for other in axes if other != key]
    settings = list(itertools.product(*(axes[other] for other in other_keys)))
    values = tuple(axes.get(key, ()))
    positions = axis_positions(key, values)
    ordered = sorted(values, key=lambda value: positions[values.index(value)]) if positions else list(values)
    rank = {value: i for i, value in enumerate(ordered)}
    series_names = list(dict.fromkeys(line[series] for line in lines))
    panels = []
    for setting in settings if len(settings) <= MAX_PANELS else settings[:1]:
        pairs = list(zip(other_keys, setting, strict=True))
        selected = [line for line in lines if all(line[k] == v for k, v in pairs)]
        selected.sort(key=lambda line: (series_names.index(line[series]), rank[str(line[key])] if key else 0))
        title = ", ".join(
            setting_label(short_key(k, axes), value_label(k, v) if k == SPLIT else v)
            for k, v in pairs
            if len(axes[k]) > 1
        )
        if len(settings) > MAX_PANELS:
            title += f" (first of {len(settings)} settings)"
        panels.append((title, tuple(selected)))
    return Chart(file_stem(key, axes), key, tuple(ordered), tuple(panels))


def chart_of_measure(lines: Sequence[Line], axes: Axes, key: str, measure: str) -> Chart:
    """Arrange a measure's figure over a key.

    The series are the values of the first other axis that holds names, or else of the first other axis.
    """
    varied = [other for other in axes if other != key and len(axes[other]) > 1]
    series = next((other for other in varied if not axis_positions(other, axes[other])), next(iter(varied), ""))
    labelled = [{**line, SERIES: value_label(series, str(line[series])) if series else ""} for line in lines]
    chart = chart_of(labelled, {axis: values for axis, values in axes.items() if axis != series}, key, SERIES)
    return replace(chart, name=chart.name.replace("link", measure.replace(" ", "-"), 1))


def by_series(lines: Sequence[Line], column: str) -> dict[str, list[Line]]:
    """Group the lines of a panel by their value in `column`, in order of appearance."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(str(line[column]), []).append(line)
    return groups


def axis_positions(key: str, values: Sequence[str]) -> list[float]:
    """The positions of values on an axis of numbers; empty if the values are names.

    Splits of one total rank, such as "6/2", lie at their share R_s/R.
    """
    if are_numbers(values):
        return [float(value) for value in values]
    pairs = [value.split("/") for value in values] if key == SPLIT else []
    ranks = [(int(s), int(p)) for s, p in pairs]
    return [s / (s + p) for s, p in ranks] if len({sum(pair) for pair in ranks}) == 1 else []


def are_numbers(values: Sequence[str]) -> bool:
    """Whether there are values and all of them are finite numbers."""
    try:
        return bool(values) and all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def file_stem(key: str, axes: Axes) -> str:
    """A figure's file name without its ending: link, or link-<short key>."""
    return "link-" + re.sub(r"[^\w-]", "-", short_key(key, axes)) if key else "link"


def short_key(key: str, axes: Axes) -> str:
    """The last part of a key, or as many of its last parts as distinguish it from the grid's other keys."""
    parts = key.split(".")
    tails = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
    return next(tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in axes) == 1 or tail == key)


def value_label(key: str, value: str) -> str:
    """A value as a reader writes it: a split as 6:2, a number with its quantity and unit."""
    if key == SPLIT:
        return value.replace("/", ":")
    return setting_label(key, value) if are_numbers([value]) else value


def axis_label(name: str) -> str:
    """A key's last part in words, with its unit in brackets: `snr_db` -> `SNR (dB)`."""
    words, unit = words_and_unit(name)
    return LABELS.get(name, f"{words} ({unit})" if unit else words)


def setting_label(name: str, value: str) -> str:
    """A setting in words: `SNR 10 dB`."""
    words, unit = words_and_unit(name)
    return f"{words} {value} {unit}".strip()


def words_and_unit(name: str) -> tuple[str, str]:
    """The words and the unit of a key's last part; the unit is empty if there is none."""
    words = name.replace(".", " ").split("_")
    unit = UNITS.get(words[-1], "") if len(words) > 1 else ""
    return " ".join(WORDS.get(word, word) for word in (words[:-1] if unit else words)), unit
