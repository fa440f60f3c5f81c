"""Sweeps in Python: `airpfed sweep`, with a table as its result."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from airpfed.config import settings_file
from airpfed.config.choice import BY_KEY
from airpfed.config.experiment_files import settings_path
from airpfed.config.schema import Settings
from airpfed.config.user_rows import add_row, user_functions
from airpfed.core.errors import UserError
from airpfed.core.files import file_name_of
from airpfed.core.rows import split_outside_brackets
from airpfed.experiment.library import Overrides, UserRows, override_lines
from airpfed.sweeps.console import SweepConsole
from airpfed.sweeps.files import run_lines
from airpfed.sweeps.job import SweepRequest, run_sweep

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    source: str | Path | Settings,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    overrides: Overrides = (),
    *,
    out: str | Path | None = None,
    workers: int = 1,
    verbose: bool = False,
    **rows: Unpack[UserRows],
) -> "pd.DataFrame":
    """Run every point of a grid with several seeds, unless it is done, and return the trials as a table.

    source: a settings file, the name of an experiment of the package, or settings. grid: `{"radio.snr_db": [0, 10]}`,
    all combinations of the values; a value may be a function, as in `{"radio.design": ["mmse", mine]}`, and keys joined
    by a slash change together, `{"adapters.rank_shared/adapters.rank_personal": [(8, 0), (4, 4)]}`. seeds: seeds per
    point, from `run.seed` on. overrides, rows: as in `Experiment.from_toml`. out: the sweep's folder, by default below
    `runs`; trials that are finished there are not run again. workers: trials at once, each in a process of its own, and
    0 for one a core; a script then needs `if __name__ == "__main__":`. With 1, trials run in this process, as functions
    from Python need. verbose: whether progress is printed.

    Returns a row for each trial and task: the grid's keys, `seed`, `task`, the task's scores (`base`, `final`, ...),
    the costs of the trial's whole run, and `run`, its folder for `load_run`. Raises UserError if any settings are
    wrong, before the first trial, and if a trial fails; the finished trials then stay.

    >>> import airpfed as ap
    >>> table = ap.sweep("tiny.toml", {"radio.snr_db": [0, 20]}, overrides={"server.rounds": 1})
    >>> table[["radio.snr_db", "seed", "task"]].values.tolist()
    [[0, 0, 'colours'], [0, 0, 'moods'], [20, 0, 'colours'], [20, 0, 'moods']]
    """
    import pandas as pd

    lines = override_lines(overrides, rows)
    if text := next((values for values in (grid or {}).values() if isinstance(values, str)), None):
        raise UserError(f"grid: values should be a list, not the text {text[:40]!r}")
    axes = {key: {_value_text(key, value): value for value in values} for key, values in (grid or {}).items()}
    if isinstance(source, Settings):
        folder = Path(out or Path("runs") / "sweep")
        file = folder / "settings.toml"
        folder.mkdir(parents=True, exist_ok=True)
        settings_file.write_settings(source, file, defaults=False)
    else:
        file = settings_path(source)
        folder = Path(out or Path("runs") / f"{file_name_of(file.stem)}-sweep")
    check_workers(file, lines, axes, workers)
    request = SweepRequest(
        file=file,
        overrides=tuple(lines),
        grid=tuple(f"{key}={','.join(values)}" for key, values in axes.items()),
        tune=(),
        tune_seeds=None,
        seeds=seeds,
        reference=(),
        folder=folder,
        reuse=(),
        workers=workers,
        ray=None,
        command="airpfed.sweep",
    )
    result = run_sweep(request, SweepConsole(verbose))
    if result.failures:
        raise UserError(f"{len(result.failures)} of the trials failed, the first: {result.failures[0]}")
    cells = [line for run in result.runs for line in run_lines(run)]
    table = pd.DataFrame([{key: nan if value is None else value for key, value in line.items()} for line in cells])
    for key, values in axes.items():  # the values as they were given, in place of their texts
        table[key] = pd.Series([_plain(values.get(text, text), text) for text in table[key]], index=table.index)
    table["run"] = [str(folder / name) for name in table["run"]]
    return table


def check_workers(file: Path, lines: Sequence[str], axes: Mapping[str, Mapping[str, Any]], workers: int) -> None:
    """Raise UserError if functions of this process would have to run in others."""
    if workers == 1:
        return
    settings = settings_file.read_settings(file, lines)
    names = [function["name"] for function in user_functions(settings).values()]
    names += [text for values in axes.values() for text, value in values.items() if callable(value)]
    if names:
        raise UserError(
            f"workers = {workers}: the function {names[0]} is known to this process alone; workers = 1 would run"
        )


def _value_text(key: str, value: Any) -> str:
    """Write a value of the grid as `--grid` reads it. A function or row is added to its public dict."""
    if "/" in key and isinstance(value, (tuple, list)):
        return "/".join(_value_text(part, member) for part, member in zip(key.split("/"), value, strict=False))
    general = f"tasks.{key.rpartition('.')[2]}" if key.startswith("tasks.") else key
    if general in BY_KEY and (callable(value) or hasattr(value, "__dataclass_fields__")):
        return add_row(general, value)
    if value is None:
        raise UserError(f"grid {key}: None is no value")
    text = settings_file.override_of(key, value).partition("=")[2]
    if len(split_outside_brackets(text)) == 1:
        return text
    return settings_file.toml_text(str(value))


def _plain(value: Any, text: str) -> Any:
    """A value of the grid as a cell of a table: numbers and texts as they are, others as text."""
    return value if isinstance(value, (bool, int, float, str)) else text
