"""The contract of a source of data, checked by reading it as a run does."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airpfed.core.errors import UserError
from airpfed.tasks.sources import TextRows
from airpfed.tasks.table_files import NotText, Row, to_rows
from airpfed.testing.report import BrokenContractError, Report, require, run_checks, subject_of, with_global_seeds


def check_source(source: Callable[..., TextRows] | str, **options: Any) -> Report:
    """Check a source of data: everything that loading, a resumed run and the devices of a federation rely on.

    source: a function `(*, options) -> rows`, or the name of a row of `SOURCES`. options: its options. The source is
    read a few times. Raises UserError for a function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> def moods(*, rows: int = 3):
    ...     return [{"text": f"a good day, number {n}", "label": "good"} for n in range(rows)]
    >>> testing.check_source(moods, rows=5).ok
    True
    """
    subject = subject_of("sources", source, options)
    trial = SourceTrial(subject.function)
    return run_checks(
        subject,
        [
            ("gives rows", trial.gives_rows),
            ("columns", trial.columns),
            ("values", trial.values),
            ("every call gives all rows", trial.repeats),
            ("deterministic", trial.deterministic),
            ("rows differ", trial.rows_differ),
            ("rows stay as they are", trial.rows_unchanged),
        ],
    )


@dataclass(frozen=True)
class SourceTrial:
    """A source with its options set."""

    function: Callable[[], TextRows]

    def raw_rows(self) -> list[dict[Any, Any]]:
        """The rows as the source gives them."""
        rows = self.function()
        require(
            isinstance(rows, Iterable) and not isinstance(rows, (str, bytes, Mapping)),
            f"returns {type(rows).__name__}; should be rows, each a mapping of column to text",
        )
        result = []
        for number, row in enumerate(rows, 1):
            require(isinstance(row, Mapping), f"row {number} is {type(row).__name__}; should be a mapping")
            result.append(dict(row))
        return result

    def rows(self) -> list[Row]:
        """The rows as a run reads them; lists and objects of a column become JSON texts, as those of messages do."""
        raw = self.raw_rows()
        nested = {key for row in raw for key, value in row.items() if isinstance(value, (list, tuple, dict))}
        try:
            return to_rows(raw, nested)
        except UserError as error:
            raise BrokenContractError(str(error)) from None

    def gives_rows(self) -> str:
        """At least one row, each a mapping."""
        count = len(self.raw_rows())
        require(count > 0, "gives no rows; should be at least one")
        return f"{count:,} rows"

    def columns(self) -> str:
        """Names of columns are texts that differ, and the first row has all of them."""
        rows = self.raw_rows()
        for number, row in enumerate(rows, 1):
            for key in row:
                require(isinstance(key, str), f"row {number} has the column {key!r}; a name should be a text")
            if missing := sorted(row.keys() - rows[0].keys()):
                require(
                    False, f"row {number} has the column {missing[0]!r}, which row 1 lacks; None stands for no value"
                )
        self.rows()
        return ", ".join(rows[0]) if rows else ""

    def values(self) -> str:
        """Texts, numbers and truth values, None for no value; lists and objects for conversations."""
        for number, row in enumerate(self.rows(), 1):
            for key, value in row.items():
                if isinstance(value, NotText):
                    require(False, f"row {number} holds {value.description} in column {key!r}; a text would be right")
        for number, row in enumerate(self.raw_rows(), 1):
            for key, value in row.items():
                require(
                    isinstance(value, (str, int, float, bool, list, tuple, dict, type(None))) or _is_number(value),
                    f"row {number} holds a {type(value).__name__} in column {key!r}; a text would be right",
                )
        return ""

    def repeats(self) -> str:
        """A second call gives the rows again: an iterator that was made once is empty by then."""
        first, second = len(self.raw_rows()), len(self.raw_rows())
        require(first > 0, "gives no rows at a later call; make the rows at every call")
        require(
            first == second, f"gives {first} rows at one call and {second} at the next; make the rows at every call"
        )
        return ""

    def deterministic(self) -> str:
        """The same rows in the same order, whatever the global generators hold: a resumed run reads them again."""
        first, second = with_global_seeds(lambda: _as_text(self.rows()))
        for number, (a, b) in enumerate(zip(first, second, strict=False), 1):
            require(a == b, f"row {number} is {a[:60]} at one call and {b[:60]} at the next; give rows a fixed order")
        return ""

    def rows_differ(self) -> str:
        """Duplicates are left out when a task is loaded; at least half of the rows should remain."""
        texts = _as_text(self.rows())
        distinct = len(set(texts))
        require(2 * distinct >= len(texts), f"only {distinct} of {len(texts)} rows differ")
        return f"{distinct:,} differ"

    def rows_unchanged(self) -> str:
        """A row that was given does not change when the next is made, as where one dict is filled anew."""
        require(
            len({id(row) for row in list(self.function())}) == len(self.raw_rows()),
            "some rows are one object; make a new dict for every row",
        )
        return ""


def _as_text(rows: Iterable[Row]) -> list[str]:
    return [json.dumps(row, sort_keys=True) for row in rows]


def _is_number(value: Any) -> bool:
    """Whether a value is a number of numpy or the like."""
    return hasattr(value, "item") and getattr(value, "shape", None) == ()
