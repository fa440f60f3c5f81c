"""Experiments and runs in Python: what `airpfed run` does, from a script or a notebook.

exp = Experiment.from_toml("minilm.toml", {"server.rounds": 3}, design=my_design)
for state, record in exp.rounds():
    print(record.loss, record.pi)
run = exp.run("runs/mine")
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from airpfed.config import settings_file
from airpfed.config.experiment_files import settings_path
from airpfed.config.schema import Settings, TaskSettings
from airpfed.config.user_rows import add_row
from airpfed.core import run_files
from airpfed.core.errors import UserError, hint
from airpfed.core.run_files import AdapterTask, RoundRecord, Summary
from airpfed.experiment import artifacts
from airpfed.experiment.build import precision_of, source_of
from airpfed.experiment.console import open_console
from airpfed.experiment.loggers import scalars
from airpfed.experiment.predictor import Predictor, Texts, check_texts, open_predictor, read_task
from airpfed.experiment.run import load_experiment, run_settings
from airpfed.model import export
from airpfed.report import page
from airpfed.tasks.sample import Task
from airpfed.tasks.sources import with_defaults
from airpfed.tasks.text import normalize_name
from airpfed.training.loop import has_round_left, play_round
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import State

if TYPE_CHECKING:
    import pandas as pd

Overrides = Mapping[str, Any] | Iterable[str]
"""`{"server.rounds": 3}` or `["server.rounds=3"]`, as `--set` on the command line."""


class UserRows(TypedDict, total=False):
    """Functions, or rows of their kind such as `Design(mine, shrinks=True)`, in place of names in the settings.

    Each is added to the public dict of its kind under its own name, and its keyword-only parameters are its options:
    `{"radio.design.truncation": 0.1}` among the overrides, or the pair `design=(mine, {"truncation": 0.1})`, sets that
    of `def mine(problem, *, truncation: float = 0.2)`.
    """

    design: Any
    """radio.design: (problem, *, options) -> transceiver."""
    channel: Any
    """radio.channel: (site, t, blocks, *, options) -> channels."""
    scheme: Any
    """radio.scheme: (link, slot, t, *, options) -> sums of a slot."""
    method: Any
    """adapters.method: (rank_shared, rank_personal, *, options) -> adapter blocks."""
    optimizer: Any
    """server.optimizer: (lr, *, options) -> (init, update)."""
    aggregator: Any
    """server.aggregator: (t, updates, *, options) -> sums."""
    metric: Any
    """tasks.*.metric, of all tasks: (predicted, correct, *, options) -> number."""


ROW_KEYS = {
    "design": "radio.design",
    "channel": "radio.channel",
    "scheme": "radio.scheme",
    "method": "adapters.method",
    "optimizer": "server.optimizer",
    "aggregator": "server.aggregator",
    "metric": "tasks.metric",
}
"""Keyword -> the setting whose row it gives."""


class Experiment:
    """An experiment that can be run round by round, or into a folder.

    >>> import airpfed as ap
    >>> exp = ap.Experiment.from_toml("tiny.toml", {"server.rounds": 2})
    >>> for state, record in exp.rounds():
    ...     print(record.round, sorted(record.loss), record.pi < 1)
    1 ['colours', 'moods'] True
    2 ['colours', 'moods'] True
    >>> sorted(exp.scores(state))
    ['colours', 'moods']
    >>> run = exp.run("runs/mine")
    >>> run.summary.rounds, sorted(run.adapters)
    (2, ['colours', 'moods'])
    """

    def __init__(self, settings: Settings) -> None:
        """Take complete settings. Nothing is loaded before the first round."""
        self.settings = settings
        self._rows: dict[str, Any] = {}
        self._notes: list[str] = []

    @classmethod
    def from_toml(cls, file: str | Path, overrides: Overrides = (), **rows: Unpack[UserRows]) -> "Experiment":
        """Read the settings of a new run from a file, or from an experiment of the package by its name, "minilm".

        overrides: `{"server.rounds": 3}` or `["server.rounds=3"]`; a value None stands for the default. rows: functions
        in place of names, see `UserRows`. Raises UserError with a line per problem.
        """
        path = settings_path(file)
        tree = settings_file.read_tree(path)
        return cls._from_tree(tree, str(path), path.parent, overrides, rows)

    @classmethod
    def from_dict(
        cls, tree: Mapping[str, Any], overrides: Overrides = (), folder: str | Path = ".", **rows: Unpack[UserRows]
    ) -> "Experiment":
        """Take the settings of a new run from a tree of dicts and lists, as a settings file would give it.

        folder: the folder that paths of data and models are relative to. overrides, rows: see `from_toml`. Raises
        UserError with a line per problem.
        """
        return cls._from_tree(tree, "settings", Path(folder), overrides, rows)

    @classmethod
    def _from_tree(
        cls, tree: Mapping[str, Any], source: str, folder: Path, overrides: Overrides, rows: UserRows
    ) -> "Experiment":
        lines = override_lines(overrides, rows)
        notes = list[str]()
        settings = settings_file.settings_from_tree(tree, source, folder, lines, notes)
        settings_file.check_new(settings, source, lines, notes=notes)
        experiment = cls(settings)
        experiment._rows, experiment._notes = dict(rows), notes
        return experiment

    def __repr__(self) -> str:
        """Name the tasks, the base model and the rounds."""
        settings = self.settings
        tasks = ", ".join(task.name for task in settings.tasks)
        return f"Experiment({tasks} on {settings.model.base}, {settings.server.rounds} rounds)"

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, with their samples split and shared over the devices."""
        return self._loaded[0]

    @property
    def setup(self) -> TrainingSetup:
        """Everything that a round needs: devices with base model and data, the uplink, the server's step."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[tuple[Task, ...], TrainingSetup]:
        self._add_rows()
        return load_experiment(self.settings)

    def _add_rows(self) -> None:
        """Put this experiment's functions in force, in case another one of the same name was given since."""
        add_rows(self._rows)

    def rounds(self) -> Iterator[tuple[State, RoundRecord]]:
        """Run the rounds one by one, from the first, and write no files.

        Yields the state after each round, and the round's record. A round is computed when it is asked for: leave the
        loop to stop. The numbers are those of `run`. Raises UserError as a run does.
        """
        setup = self.setup
        state, records, probe = setup.initial, list[RoundRecord](), None
        if setup.probe:
            with tempfile.TemporaryDirectory(prefix="airpfed-") as folder:
                probe = setup.probe(setup.initial, Path(folder) / "theory.json", False, lambda line: None)
        while has_round_left(setup, records):
            state, record = play_round(setup, state, probe)
            records.append(record)
            yield state, record

    def scores(self, state: State, split: Literal["dev", "test"] = "test") -> dict[str, float]:
        """Measure each task's model in a state, by the task's metric on its dev or test split."""
        setup = self.setup
        results = {
            task.name: setup.evaluate_task(setup, state, number, split)
            for number, task in enumerate(setup.tasks)
            if getattr(setup.tasks[number], split).prompts
        }
        return {name: result.value for name, result in results.items() if result}

    def run(self, folder: str | Path, resume: bool = False, verbose: bool = False) -> "Run":
        """Run all rounds into a folder, which then holds the files of `airpfed run`, and return the run.

        resume: go on with the run that is in the folder; its functions from Python must be given again, with the same
        source. verbose: whether lines are printed, as on the command line. Raises UserError if the folder holds a run
        already, or one of other settings, and KeyboardInterrupt after Ctrl-C; the rounds up to there can be resumed.
        """
        self._add_rows()
        if not resume and (names := artifacts.files_of_run(Path(folder))):
            raise UserError(f"{folder}: holds a run already ({names[0]}); run(..., resume=True) goes on with it")
        out = artifacts.claim_folder(Path(folder), "run", resume)
        with open_console(self.settings.server.rounds, verbose=verbose) as console:
            outcome = run_settings(
                self.settings, "airpfed.Experiment.run", out, resume, console, self._notes, lambda _: self._loaded
            )
        if not outcome.completed:
            raise KeyboardInterrupt(f"{out}: stopped after round {outcome.state.round}; run(..., resume=True) goes on")
        return Run(out)


def override_lines(overrides: Overrides, rows: Mapping[str, Any]) -> list[str]:
    """Write overrides and rows as `section.key=value`, and add the rows to their public dicts.

    Raises UserError if an override and a row set the same key, and TypeError for an unknown kind of row.
    """
    if isinstance(overrides, str):
        raise UserError(f"{overrides[:60]}: overrides should be a dict or a list, not one text")
    names = add_rows(rows)
    if isinstance(overrides, Mapping):
        lines = [settings_file.override_of(key, value) for key, value in overrides.items()]
    else:
        lines = list(overrides)
    for line in lines:
        key = line.partition("=")[0].strip()
        if (noun := next((noun for noun, (setting, _) in names.items() if setting == key), None)) is not None:
            raise UserError(
                f"{key}: is set twice, by {line[:60]} and by {noun}={names[noun][1]}; give only one of them"
            )
    return [*(f"{key}={name}" for key, name in names.values()), *options_of(rows), *lines]


def add_rows(rows: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Add rows to their public dicts: kind -> (the setting's key for overrides, the row's name).

    Raises TypeError for an unknown kind, and UserError as `add_row`.
    """
    if unknown := [noun for noun in rows if noun not in ROW_KEYS]:
        raise TypeError(
            f"unexpected argument {unknown[0]!r}; should be one of {', '.join(ROW_KEYS)}; a row of another kind goes "
            'into its public dict, airpfed.SOURCES["mine"] = mine, and by its name into the overrides'
        )
    keys = {noun: ROW_KEYS[noun] for noun in rows}
    return {
        noun: (key.replace("tasks.", "tasks.*."), add_row(key, without_options(rows[noun])))
        for noun, key in keys.items()
    }


def without_options(row: Any) -> Any:
    """The function or row of a pair (row, {option: value}), or the row itself."""
    return row[0] if isinstance(row, tuple) and len(row) == 2 and isinstance(row[1], Mapping) else row


def options_of(rows: Mapping[str, Any]) -> list[str]:
    """Write the options of pairs (row, {option: value}) as `section.key.option=value`."""
    pairs = {noun: row[1] for noun, row in rows.items() if without_options(row) is not row}
    return [
        settings_file.override_of(f"{ROW_KEYS[noun].replace('tasks.', 'tasks.*.')}.{option}", value)
        for noun, options in pairs.items()
        for option, value in options.items()
    ]


# Runs


@dataclass(frozen=True)
class Run:
    """The run in a folder. Its files are read when they are asked for; no code from the folder runs.

    >>> import airpfed as ap
    >>> run = ap.Experiment.from_toml("tiny.toml", {"server.rounds": 1}).run("runs/short")
    >>> run.summary.exit, run.settings.server.rounds, run.report.name
    ('completed', 1, 'report.html')
    >>> [folder.name for folder in run.adapters.values()]
    ['colours', 'moods']
    >>> set(run.predict(["ba be bi", "ka ke ki"], "moods")) <= {"good", "bad", "it"}
    True
    """

    folder: Path

    @cached_property
    def settings(self) -> Settings:
        """The settings of the run. Names of rows that this process does not know, such as a design, stay names."""
        return settings_file.read_stored(self.folder / "experiment.toml")

    @cached_property
    def records(self) -> "pd.DataFrame":
        """A row for each round, and a column for each number: `round`, `loss/TASK`, `pi`, `ledger/air_seconds`, ...

        A number that a round does not have is NaN.
        """
        import pandas as pd

        records = run_files.load_records(self.folder / "records.jsonl")
        return pd.DataFrame([{"round": record.round, **scalars(record)} for record in records])

    @cached_property
    def summary(self) -> Summary:
        """The outcome: scores of each task before and after, cost, Pi. Raises UserError before the run has ended."""
        return run_files.load_summary(self.folder / "summary.json")

    @property
    def adapters(self) -> dict[str, Any]:
        """The folder of each task's adapter in PEFT's format, `{task: Path}`.

        `{task: {device: Path}}` where each device has its own model. Tasks without an adapter are left out: those of an
        unfinished run, and of a method whose models are no LoRA adapters.
        """
        folders: dict[str, Any] = {}
        for task in self.settings.tasks:
            folder = artifacts.path_below(self.folder, "adapters", task.name)
            if (folder / "adapter_config.json").is_file():
                folders[task.name] = folder
            elif devices := {
                int(path.parent.name.removeprefix("device-")): path.parent
                for path in folder.glob("device-*/adapter_config.json")
                if path.parent.name.removeprefix("device-").isdecimal()
            }:
                folders[task.name] = dict(sorted(devices.items()))
        return folders

    @property
    def report(self) -> Path:
        """The report, one HTML page. It is written if the run has none yet."""
        path = self.folder / "report.html"
        return path if path.exists() else page.write_page(self.folder)

    def model(self, task: str, device: int | None = None, *, trust_remote_code: bool = False) -> Any:
        """Load the base model with a task's adapter, as a PEFT model in evaluation mode.

        device: number of a device, where each has its own model. trust_remote_code: whether Python code in the base
        model's folder may run, whatever the stored settings say. Raises UserError if there is no such adapter, or the
        base model is not the run's.
        """
        folder = self._adapter(task, device)
        names = self._classes(task)
        base, precision = self.settings.model.base, precision_of(self.settings)
        return export.load_adapter(base, self._base_identity, folder, names, trust_remote_code, precision)[0]

    def predict(
        self, texts: Texts, task: str, device: int | None = None, *, trust_remote_code: bool = False
    ) -> list[str]:
        """Answer texts with a task's model: the name of a class, or the generated text.

        texts: each a text, or a dict with the columns that the task's prompt names. The other arguments are those of
        `predictor`, which is loaded at every call.
        """
        if not check_texts(texts):
            return []
        return self.predictor(task, device, trust_remote_code=trust_remote_code).predict(texts)

    def predict_proba(
        self, texts: Texts, task: str, device: int | None = None, *, trust_remote_code: bool = False
    ) -> "pd.DataFrame":
        """Probabilities of the classes, a row each text and a column each class; arguments as for `predict`."""
        return self.predictor(task, device, trust_remote_code=trust_remote_code).predict_proba(texts)

    def predictor(
        self, task: str, device: int | None = None, *, base: str | None = None, trust_remote_code: bool = False
    ) -> Predictor:
        """Load a task's model once, to answer texts again and again.

        base: folder or name of the base model, if it has moved since the run. The other arguments are those of `model`.
        """
        folder = self._adapter(task, device)
        content = read_task(folder) or self._task_file(task)
        # Base and hash are those of the run's folder, as the rest of the run.
        content = content.model_copy(update={"base_sha256": self._base_identity})
        return open_predictor(content, folder, base or self.settings.model.base, trust_remote_code)

    def _task(self, name: str) -> TaskSettings:
        tasks = {task.name: task for task in self.settings.tasks}
        if name not in tasks:
            raise UserError(f"{self.folder}: has no task {name!r}, but {', '.join(tasks)}{hint(name, tasks)}")
        return tasks[name]

    @property
    def _base_identity(self) -> str:
        return str(artifacts.environment_of(self.folder).get("base_sha256"))

    def _task_file(self, name: str) -> AdapterTask:
        """The content of task.json, from the settings, for adapters of older versions that lack the file."""
        settings = self._task(name)
        source = with_defaults(source_of(settings))
        generates, names = source.kind != "classify", self._classes(name)
        causal = generates or export.check_adapter_config(self._folders(name)[0]) == "CAUSAL_LM"
        words = {normalize_name(key): word for key, word in (source.labels or {}).items()}
        return AdapterTask(
            name=name,
            kind=source.kind or "classify",
            prompt=source.prompt or "",
            text_column=source.text_column,
            max_chars=source.max_chars,
            max_tokens=self.settings.model.max_tokens,
            labels={key: f" {words.get(normalize_name(key), key).strip()}" for key in names},
            label_score="" if generates else "first_token" if causal else "head",
            id2label={str(index): key for index, key in enumerate(names)},
            label2id={key: index for index, key in enumerate(names)},
            max_new_tokens=settings.max_new_tokens if generates else None,
            end_tokens=[],
            base=self.settings.model.base,
            base_revision=None,
            base_dtype=self.settings.model.dtype,
            base_quantization=self.settings.model.quantization,
            base_sha256=self._base_identity,
        )

    def _classes(self, task: str) -> list[str]:
        try:
            return list(artifacts.environment_of(self.folder)["data"][task]["classes"])
        except (KeyError, TypeError):
            raise UserError(f"{self.folder / 'environment.json'}: missing, damaged, or of an old version") from None

    def _folders(self, task: str) -> list[Path]:
        folders = self.adapters.get(task)
        return list(folders.values()) if isinstance(folders, dict) else [] if folders is None else [folders]

    def _adapter(self, task: str, device: int | None) -> Path:
        """The folder of a task's adapter. Raises UserError if there is none, or `device` does not fit."""
        self._task(task)
        folder = self.adapters.get(task)
        if isinstance(folder, dict):
            if device not in folder:
                numbers = ", ".join(map(str, folder))
                raise UserError(
                    f"{self.folder}: each device of {task} has its own model; device should be of {numbers}"
                )
            folder = folder[device]
        elif device is not None:
            raise UserError(f"{self.folder}: the devices of {task} share one model; leave device = {device} out")
        if folder is None:
            raise UserError(f"{self.folder}: no adapter of {task} here; the run is unfinished, or its method has none")
        return Path(folder)

    def _repr_html_(self) -> str:
        """Show the folder, and the scores where the run has ended."""
        import html

        import pandas as pd

        head = f"<p>run <code>{html.escape(str(self.folder))}</code></p>"
        try:
            summary = self.summary
        except UserError:
            return head
        rows = [
            {"task": name, "metric": task.metric, "untouched": task.base, "fine-tuned": task.final}
            for name, task in summary.tasks.items()
        ]
        table = pd.DataFrame(rows).to_html(index=False, float_format="%.3f", na_rep="-")
        return f"{head}{table}<p>{summary.rounds} rounds, {summary.ledger.air_seconds:.3g} s on air</p>"


def load_run(folder: str | Path) -> Run:
    """Open the run in a folder, whoever made it: no code from there runs.

    Functions that the run got from Python are names in its settings, and are needed only to resume it. Raises UserError
    if the folder holds no run.

    >>> import airpfed as ap
    >>> run = ap.Experiment.from_toml("tiny.toml", {"server.rounds": 1}).run("runs/one")
    >>> ap.load_run("runs/one").records[["round", "loss/moods", "pi"]].shape
    (1, 3)
    """
    run = Run(Path(folder))
    if not (run.folder / "experiment.toml").is_file():
        raise UserError(f"{folder}: not a run's directory (no experiment.toml in it)")
    _ = run.settings  # a damaged file is reported at once
    return run
