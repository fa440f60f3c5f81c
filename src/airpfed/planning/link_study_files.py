"""`airpfed link --out`: the rows of a study as files, written as they come."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from airpfed.config.grid import Point, axes_of
from airpfed.core.errors import UserError
from airpfed.core.files import path_inside, write_atomic
from airpfed.planning.link_study import NUMBERS, Row, numbers
from airpfed.report import charts, curves


def kept(
    found: Iterator[tuple[Point, dict[str, Row]]], folder: Path, grid: Sequence[str], say: Callable[[str], None]
) -> Iterator[tuple[Point, dict[str, Row]]]:
    """Pass the points on; `folder`/link.csv always holds those that have passed, figures are drawn after the last.

    Overwrites what an earlier study left under the same names. say: told in one line what was written. Raises
    UserError where the folder cannot be made, OSError naming the file that cannot be written.
    """
    axes = axes_of(grid)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    for name in charts.names(axes):  # no old figure beside new numbers if this study is stopped
        path_inside(folder, name).unlink(missing_ok=True)
    columns, lines = (*axes, "design", *NUMBERS), list[charts.Line]()
    write_atomic(folder / "link.csv", charts.text(columns, lines))
    for point, rows in found:
        lines += as_lines(point, rows)
        write_atomic(folder / "link.csv", charts.text(columns, lines))
        yield point, rows
    for name, content in curves.files(lines, axes):
        write_atomic(path_inside(folder, name), content)
    say(f"{folder}: wrote {', '.join(['link.csv', *charts.names(axes)])}")


def as_lines(point: Point, rows: dict[str, Row]) -> list[charts.Line]:
    """The point's lines of link.csv: a design each."""
    where = dict(change.split("=", 1) for change in point)
    return [{**where, "design": name, **numbers(one)} for name, one in rows.items()]
