"""`airpfed predict`: the texts of a file or of standard input, and a row of answers for each."""

import csv
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpfed.core import files
from airpfed.core.errors import UserError, hint
from airpfed.core.paths import MAX_BYTES
from airpfed.experiment.adapter_files import TASK_FILE
from airpfed.experiment.library import load_run
from airpfed.experiment.predictor import Predictor, chat_source, load_predictor
from airpfed.tasks.conversations import NoMessageError
from airpfed.tasks.sample import Message
from airpfed.tasks.sources import messages_of, template_columns
from airpfed.tasks.table_files import READERS, NotText, Row, TextForm, json_values, read_as
from airpfed.tasks.text import is_blank

LINES = "lines"
"""Format of a text a line."""
FORMATS = (*(ending.removeprefix(".") for ending in READERS), LINES)
STDIN = "-"


@dataclass(frozen=True)
class PredictRequest:
    """What `airpfed predict` is to answer.

    folder: a run's, or an exported folder. task, device: which model of a run. file: path, or "-" for standard input.
    column: the file's column for the prompt's text. format: of the file; "" goes by its ending. base: folder or name of
    the base model, if it has moved. trusted: whether Python code in the base model's folder may run.
    """

    folder: Path
    task: str = ""
    device: int | None = None
    file: str = STDIN
    column: str = ""
    format: str = ""
    base: str | None = None
    trusted: bool = False


@dataclass(frozen=True)
class Output:
    """What a command prints. text: on standard output. notes: lines on standard error."""

    text: str
    notes: tuple[str, ...] = ()


def answer_file(request: PredictRequest, out: Path | None, as_json: bool) -> Output:
    """Answer every row of a file, and write the answers as CSV or JSON lines to `out`, or return them.

    Rows without text get no answer. Raises UserError in one line for what cannot be read or answered.
    """
    if out is not None and (out.suffix not in (".csv", ".jsonl") or out.is_dir()):
        raise UserError(f"--out {out}: should be a file that ends in .csv or .jsonl")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if request.file != STDIN and not Path(request.file).exists():
        raise UserError(f"{request.file}: no such file")
    predictor = predictor_of(request)
    as_json = as_json if out is None else out.suffix == ".jsonl"
    nested = tuple(name for name in (predictor.task.messages, request.column) if predictor.task.messages and name)
    rows, values = read_input(request, TextForm(nested=nested), as_json)
    texts = prompt_rows(request, predictor, rows)
    results, notes = answer_rows(request, predictor, rows, texts)
    if skipped := results.count(None):
        notes.append(f"{skipped:,} of {len(rows):,} rows have no text, and no answer")
    text = output_text(predictor, values or rows, results, as_json)
    if out is None:
        return Output(text, tuple(notes))
    files.write_atomic(out, text)
    return Output(f"{out}: {len(rows) - skipped:,} answers\n", tuple(notes))


def answer_rows(
    request: PredictRequest, predictor: Predictor, rows: Sequence[Row], texts: Sequence[Mapping[str, str]]
) -> "tuple[list[Answer | None], list[str]]":
    """The answers to the rows, None where one has no text, and lines for the user. texts: see `prompt_rows`."""
    filled = [index for index, text in enumerate(texts) if not any(map(is_blank, text.values()))]
    results: list[Answer | None] = [None] * len(rows)
    if predictor.task.kind != "chat":
        for index, answer in zip(filled, answer_texts(predictor, [texts[index] for index in filled]), strict=True):
            results[index] = answer
        return results, []
    lines = any("" in row for row in rows)  # a text a line, whatever the column of the messages is called
    asked = {index: next(iter(texts[index].values())) if lines else texts[index] for index in filled}
    read = {index: messages_at(request, predictor, index, text) for index, text in asked.items()}
    conversations = {index: messages for index, messages in read.items() if messages is not None}
    for index, reply in zip(conversations, predictor.reply([*conversations.values()]), strict=True):
        results[index] = Answer(reply, {})
    cut = predictor.too_long([*conversations.values()])
    note = (
        f"{cut:,} of {len(conversations):,} conversations exceed the task's {predictor.task.max_tokens} tokens; their "
        "first exchanges, or the middle, are not read"
    )
    return results, [note] if cut else []


def messages_at(
    request: PredictRequest, predictor: Predictor, index: int, text: str | Mapping[str, str]
) -> list[Message] | None:
    """A row's messages; None where no user says anything. Raises UserError that names file and row for other forms."""
    try:
        return messages_of(text, chat_source(predictor.task))
    except NoMessageError:
        return None
    except ValueError as error:
        file = "standard input" if request.file == STDIN else request.file
        raise UserError(f"{file}: row {index + 1:,} {error}") from None


def are_messages(cells: Sequence[str]) -> bool:
    """Whether all cells that are not blank hold a list or an object as JSON."""
    try:
        return all(isinstance(json.loads(cell), list | dict) for cell in cells if not is_blank(cell))
    except (ValueError, RecursionError):
        return False


def predictor_of(request: PredictRequest) -> Predictor:
    """The model that a request names: a run's by its task, or that of an exported folder."""
    folder = request.folder
    if (folder / "experiment.toml").is_file():
        run = load_run(folder)
        names = [task.name for task in run.settings.tasks]
        if not request.task and len(names) > 1:
            raise UserError(f"{folder}: has the tasks {', '.join(names)}; --task NAME chooses one")
        return run.predictor(
            request.task or names[0], request.device, base=request.base, trust_remote_code=request.trusted
        )
    if not (folder / TASK_FILE).is_file():
        raise UserError(f"{folder}: neither a run (no experiment.toml) nor an exported folder (no {TASK_FILE})")
    if request.device is not None:
        raise UserError(f"{folder}: an exported folder, which holds one model; leave --device out")
    predictor = load_predictor(folder, request.base, trust_remote_code=request.trusted)
    if request.task and request.task != predictor.task.name:
        raise UserError(f"{folder}: is the model of task {predictor.task.name}, not of {request.task!r}")
    return predictor


# Input


def read_input(request: PredictRequest, form: TextForm, with_values: bool) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of a file or of standard input, and those of JSON also with the values as they are there.

    A text a line becomes rows of one column with the empty name. form: how a file's text is written. with_values:
    whether the second is asked for.
    """
    kind = request.format or format_of(request.file)
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: should be one of {', '.join(FORMATS)}{hint(kind, FORMATS)}")
    if request.file != STDIN:
        return read_path(Path(request.file), kind, form, with_values)
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    with tempfile.TemporaryDirectory(prefix="airpfed-") as folder:
        path = Path(folder) / "stdin"
        path.write_bytes(data)
        try:
            return read_path(path, kind, form, with_values)
        except UserError as error:
            raise UserError(str(error).replace(str(path), "standard input")) from None


def read_path(path: Path, kind: str, form: TextForm, with_values: bool) -> tuple[list[Row], list[dict[str, Any]]]:
    """`read_input` of a file. kind: one of FORMATS."""
    if kind == LINES:
        return read_lines(path), []
    rows = read_as(path, f".{kind}", form)
    return rows, json_values(path, f".{kind}") if with_values and kind in ("json", "jsonl") else []


def format_of(file: str) -> str:
    """The format of a file by its ending; a text a line for .txt and standard input."""
    ending = Path(file).suffix.lower()
    if file == STDIN or ending == ".txt":
        return LINES
    if ending not in READERS:
        raise UserError(f"{file}: no known ending; --format says what it is, one of {', '.join(FORMATS)}")
    return ending.removeprefix(".")


def read_lines(path: Path) -> list[Row]:
    """A text a line, in UTF-8. Raises UserError if there is no such file, or it is too large or not UTF-8."""
    data = files.read_bytes(path)
    if data is None:
        raise UserError(f"{path}: no such file")
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES:,} bytes; give it in parts")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save the file as UTF-8") from None
    if lines[-1] == "":
        lines.pop()
    return [{"": line.removesuffix("\r")} for line in lines]


def prompt_rows(request: PredictRequest, predictor: Predictor, rows: Sequence[Row]) -> list[dict[str, str]]:
    """The columns that the prompt needs, of each row. Raises UserError where one is missing or holds no text."""
    task = predictor.task
    needed = template_columns(task.prompt)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    given = [row.get(request.column, "") for row in rows] if request.column in columns else []
    if task.messages and (are_messages(given) if given else not request.column and task.messages in columns):
        needed = [task.messages]
    sources = {column: column for column in needed}
    if columns == [""]:
        if request.column:
            raise UserError(f"--column {request.column}: the input has a text a line, and no columns")
        if len(needed) > 1:
            raise UserError(f"the prompt of {task.name} needs the columns {', '.join(needed)}; give a file with them")
        sources = {needed[0]: ""}
    elif request.column:
        main = task.text_column if task.text_column in needed else needed[0]
        sources[main] = request.column
    if rows and (missing := [column for column in sources.values() if column not in columns]):
        known = ", ".join(columns[:20])
        raise UserError(
            f"{request.file}: has no column {missing[0]!r}, but {known}{hint(missing[0], columns)}"
            + (f", nor {task.messages!r}" if task.messages else "")
            + ("" if request.column else "; --column NAME chooses another for the text")
            + (" or the messages" if task.messages and not request.column else "")
        )
    for number, row in enumerate(rows, 1):
        for column in sources.values():
            if isinstance(value := row.get(column, ""), NotText):
                raise UserError(f"{request.file}: row {number} holds {value.description} in column {column!r}")
    return [{name: row.get(column, "") for name, column in sources.items()} for row in rows]


# Output


@dataclass(frozen=True)
class Answer:
    """The answer to a text. probabilities: of the classes; empty for generated text."""

    prediction: str
    probabilities: Mapping[str, float]


def answer_texts(predictor: Predictor, texts: Sequence[Mapping[str, str]]) -> list[Answer]:
    """Answer texts of a task that is no chat, each a dict with the columns of the prompt."""
    if predictor.task.kind != "classify":
        return [Answer(text, {}) for text in predictor.predict(texts)]
    rows = predictor.predict_proba(texts).to_dict("records") if texts else []
    return [Answer(max(row, key=lambda name: row[name]), row) for row in rows]


def output_columns(predictor: Predictor, inputs: Sequence[str], as_json: bool) -> list[str]:
    """The names of the output's columns for answers. One that the input has too gets a `_` at its end.

    `prediction`; for classes also `probability` and, for each class, `p_CLASS`, or in JSON one object `probabilities`.
    """
    names = ["prediction"]
    if predictor.task.kind == "classify":
        names += ["probability", *(["probabilities"] if as_json else [f"p_{name}" for name in predictor.task.labels])]
    columns = list(inputs)
    for name in names:
        while name in columns:
            name += "_"
        columns.append(name)
    return columns[len(inputs) :]


def output_text(
    predictor: Predictor, rows: Sequence[Mapping[str, Any]], answers: Sequence[Answer | None], as_json: bool
) -> str:
    """The input's rows with their answers, as CSV or as an object a line. A text a line is the column `text`.

    answers: None for a row without text, whose cells are empty, or null.
    """
    inputs = list(dict.fromkeys(column for row in rows for column in row))
    names = ["text" if name == "" else name for name in inputs]
    columns = output_columns(predictor, names, as_json)

    def cells(answer: Answer | None) -> list[object]:
        if answer is None:
            return [None] * len(columns)
        chances = answer.probabilities
        if not chances:
            return [answer.prediction]
        return [answer.prediction, chances[answer.prediction], *([chances] if as_json else chances.values())]

    table = [
        [*(row.get(name, "") for name in inputs), *cells(answer)] for row, answer in zip(rows, answers, strict=True)
    ]
    if as_json:
        objects = (dict(zip([*names, *columns], row, strict=True)) for row in table)
        return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*names, *columns])
    for row in table:
        writer.writerow([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row])
    return stream.getvalue()
