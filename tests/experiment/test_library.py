"""Experiments in Python: the rounds and files of the command line, functions from a notebook, runs read again."""

import doctest
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import airpfed as ap
from airpfed.air.designs import DESIGNS, Design, channel_inversion
from airpfed.config import settings_file, user_rows
from airpfed.config.choice import KINDS
from airpfed.config.settings_file import read_settings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.devices.evaluate import classify, complete
from airpfed.experiment import library
from airpfed.experiment import run as run_module
from airpfed.report.page import write_page
from airpfed.sweeps.compare import read_runs
from airpfed.training import loop
from airpfed.training.evaluate import model_of
from airpfed.training.state import vectors
from support import experiments
from support.settings import save_settings

pytestmark = pytest.mark.usefixtures("shared_bases")


@pytest.fixture(autouse=True)
def rows() -> Iterator[None]:
    """Public dicts are as before after each test."""
    before = {name: dict(kind.rows) for name, kind in KINDS.items()}
    yield
    for name, kind in KINDS.items():
        kind.rows.data.clear()
        kind.rows.data.update(before[name])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second."""
    return save_settings(tmp_path_factory.mktemp("library"), False)


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the command line."""
    out = tmp_path_factory.mktemp("command") / "run"
    assert run_module.run_file(file, [], out, False, "airpfed run") == 0
    return out


def timeless(record: run_files.RoundRecord) -> run_files.RoundRecord:
    return record.model_copy(update={"seconds": {}})


def records_of(folder: Path) -> list[run_files.RoundRecord]:
    return [timeless(record) for record in run_files.load_records(folder / "records.jsonl")]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files of a run whose bytes are its numbers'."""
    names = ["experiment.toml", "layout.json", "checkpoint", "adapters"]
    paths = [path for name in names for path in sorted((folder / name).rglob("*"))]
    paths += [folder / name for name in names if (folder / name).is_file()]
    return {str(path.relative_to(folder)): without_command(path) for path in paths if path.is_file()}


def without_command(path: Path) -> bytes:
    """A file's content; that of a model card without the run's command."""
    lines = path.read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if path.name != "README.md" or not line.startswith(b"- command: "))


def without_times(tree: Any) -> Any:
    return {key: value for key, value in tree.items() if key != "seconds"}


# Rounds and runs


def test_a_run_writes_the_files_of_the_command_line(file: Path, whole: Path, tmp_path: Path) -> None:
    run = ap.Experiment.from_toml(file).run(tmp_path / "run")
    assert {path.name for path in run.folder.iterdir()} == {path.name for path in whole.iterdir()}
    assert bytes_of(run.folder) == bytes_of(whole)
    assert records_of(run.folder) == records_of(whole)
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (run.folder, whole))
    assert without_times(one) == without_times(two)
    one, two = (json.loads((folder / "environment.json").read_text()) for folder in (run.folder, whole))
    assert {key for key in one if one[key] != two[key]} == {"command"}


def test_rounds_are_those_of_a_run_and_leave_nothing(file: Path, whole: Path, tmp_path: Path) -> None:
    """Stopped, looked at and gone on with; and a run after them is the same run."""
    experiment = ap.Experiment.from_toml(file)
    rounds = experiment.rounds()
    state, first = next(rounds)
    assert state.round == 1
    scores = experiment.scores(state)
    assert set(scores) == {"colours", "moods"} and all(0 <= value <= 1 for value in scores.values())
    records = [first, *(record for _, record in rounds)]
    assert [timeless(record) for record in records] == records_of(whole)
    assert bytes_of(experiment.run(tmp_path / "run").folder) == bytes_of(whole)


def test_rounds_have_the_theory_of_a_run(tmp_path: Path) -> None:
    """Its probe needs a folder; that of rounds is gone afterwards."""
    experiment = ap.Experiment.from_toml(save_settings(tmp_path, True), {"server.rounds": 2})
    records = [timeless(record) for _, record in experiment.rounds()]
    assert records[1].theory is not None
    run = experiment.run(tmp_path / "run")
    assert records_of(run.folder) == records
    assert (run.folder / "theory.json").exists()


def test_scores_are_those_of_the_summary(file: Path, whole: Path) -> None:
    experiment = ap.Experiment.from_toml(file)
    *_, (state, _) = experiment.rounds()
    finals = {name: task.final for name, task in ap.load_run(whole).summary.tasks.items()}
    assert experiment.scores(state) == finals
    assert experiment.scores(ap.Experiment.from_toml(file).setup.initial) == {
        name: task.base for name, task in ap.load_run(whole).summary.tasks.items()
    }


def test_a_time_on_air_ends_the_rounds_too(file: Path, whole: Path) -> None:
    budget = 2.5 * run_files.load_records(whole / "records.jsonl")[0].ledger.air_seconds
    assert [r.round for _, r in ap.Experiment.from_toml(file, {"server.air_seconds": budget}).rounds()] == [1, 2]


def test_ctrl_c_leaves_a_run_that_goes_on(
    file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return play_round(*args)

    play_round = loop.play_round
    experiment = ap.Experiment.from_toml(file)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped after round 1"):
        patch.setattr(loop, "play_round", interrupted)
        experiment.run(tmp_path / "run")
    assert len(records_of(tmp_path / "run")) == 1
    run = experiment.run(tmp_path / "run", resume=True)
    assert records_of(run.folder) == records_of(whole)
    assert bytes_of(run.folder) == bytes_of(whole)


def test_a_run_in_another_thread_is_the_same(file: Path, whole: Path, tmp_path: Path) -> None:
    """There Ctrl-C cannot be caught."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(ap.Experiment.from_toml(file).run, tmp_path / "run").result()
    assert records_of(run.folder) == records_of(whole)


def test_lines_are_printed_on_request(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ap.Experiment.from_toml(file, {"server.rounds": 1}).run(tmp_path / "a")
    assert capsys.readouterr().out == ""
    ap.Experiment.from_toml(file, {"server.rounds": 1}).run(tmp_path / "b", verbose=True)
    assert "round 1  loss" in capsys.readouterr().out


def test_a_folder_with_a_run_is_refused(file: Path, whole: Path) -> None:
    with pytest.raises(UserError, match=r"holds a run already .*resume=True"):
        ap.Experiment.from_toml(file).run(whole)


# Settings


def test_overrides_are_values_or_lines(file: Path) -> None:
    values = {"server.rounds": 2, "tasks.*.metric": "macro_f1", "radio.design": {"name": "mmse"}, "radio.snr_db": None}
    lines = ["server.rounds=2", "tasks.*.metric=macro_f1", "radio.design=mmse", "radio.snr_db="]
    one, two = ap.Experiment.from_toml(file, values).settings, ap.Experiment.from_toml(file, lines).settings
    assert one == two and one.server.rounds == 2 and one.radio.snr_db is None
    assert one == read_settings(file, lines)


def test_a_tree_is_a_settings_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the folder, and the tree stays as it is."""
    tree = settings_file.read_tree(file)
    for task in tree["tasks"]:
        task["source"] = Path(task["source"]).name
    before = json.dumps(tree)
    expected = ap.Experiment.from_toml(file, {"server.rounds": 2}).settings
    assert ap.Experiment.from_dict(tree, {"server.rounds": 2}, file.parent).settings == expected
    monkeypatch.chdir(file.parent)
    assert ap.Experiment.from_dict(tree, ["server.rounds=2"]).settings == expected
    assert json.dumps(tree) == before
    assert ap.Experiment(expected).settings is expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"server.round": 3}, "server.round: unknown key"),
        ({"server.rounds": 0}, "server.rounds = 0"),
        ({"rounds": 3}, "should be section.key=value"),
        ({"server.lr": object()}, "server.lr: a settings file holds numbers"),
        ("server.rounds=3", "should be a dict or a list"),
        ({"devices.local_lr": 0.1}, "does nothing with"),
        ({"radio.design": "mine"}, "should be one of"),
    ],
)
def test_wrong_settings_are_one_line(file: Path, overrides: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ap.Experiment.from_toml(file, overrides)
    assert "\n" not in str(caught.value)


# Functions from Python


def receiver(body: Callable[..., Any] = channel_inversion) -> Callable[..., Any]:
    def mine(problem, *, truncation: float = 0.2):
        return body(problem, truncation=truncation)

    return mine


def other_receiver() -> Callable[..., Any]:
    def mine(problem, *, truncation: float = 0.2):
        return channel_inversion(problem, truncation=truncation / 2)

    return mine


@pytest.fixture(scope="module")
def with_function(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds whose design came from Python. The process forgets the design."""
    out = tmp_path_factory.mktemp("function") / "run"
    changes = {"server.rounds": 2, "radio.design.truncation": 0.6}
    ap.Experiment.from_toml(file, changes, design=receiver()).run(out)
    del DESIGNS["mine"]
    return out


def test_a_function_acts_with_its_options(file: Path, with_function: Path, tmp_path: Path) -> None:
    changes = {"server.rounds": 2, "radio.design": {"name": "channel_inversion", "truncation": 0.6}}
    plain = ap.Experiment.from_toml(file, changes).run(tmp_path / "plain")
    one, two = records_of(plain.folder), records_of(with_function)
    assert [record.mse for record in one] == [record.mse for record in two]
    assert one[0].mse != ap.Experiment.from_toml(file).rounds().__next__()[1].mse, "the option has an effect"


def test_the_run_holds_name_and_hash_and_opens_without_the_function(with_function: Path, tmp_path: Path) -> None:
    assert "mine" not in DESIGNS
    copy = Path(shutil.copytree(with_function, tmp_path / "copy"))
    function = {"name": "mine", "sha256": user_rows.source_sha256(Design(receiver()))}
    assert json.loads((copy / "environment.json").read_text())["functions"] == {"radio.design": function}
    run = ap.load_run(copy)
    assert run.settings.radio.design.label == "mine(truncation=0.6)"
    assert len(run.records) == 2 and run.summary.rounds == 2
    (copy / "report.html").unlink()
    assert "mine" in run.report.read_text() and write_page(copy).exists()
    runs, _ = read_runs([copy], lambda line: None)
    assert len(runs) == 1
    adapters = {str(path): path.read_bytes() for path in copy.rglob("adapter_model.safetensors")}
    shutil.rmtree(copy / "adapters")
    assert run_module.export_run(copy, merged=False)
    assert {str(path): path.read_bytes() for path in copy.rglob("adapter_model.safetensors")} == adapters
    assert "mine" not in DESIGNS


@pytest.mark.parametrize(
    ("design", "words"),
    [
        (None, r"radio\.design is the function mine, .* resume it there with design=mine"),
        (other_receiver(), r"the function mine \(radio\.design\) has another source"),
        (receiver(), ""),
    ],
)
def test_a_resumed_run_needs_the_same_function(
    file: Path, design: Any, words: str, with_function: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(with_function, tmp_path / "copy"))
    before = bytes_of(copy)
    given = {} if design is None else {"design": design}
    changes = {"server.rounds": 3} | ({} if design is None else {"radio.design.truncation": 0.6})
    experiment = ap.Experiment.from_toml(file, changes, **given)
    if words:
        with pytest.raises(UserError, match=words) as caught:
            experiment.run(copy, resume=True)
        assert "\n" not in str(caught.value)
        assert bytes_of(copy) == before
        (copy / "environment.json").write_text("{")  # the checkpoint's fingerprint tells
        with pytest.raises(UserError):
            experiment.run(copy, resume=True)
    else:
        assert experiment.run(copy, resume=True).records["round"].tolist() == [1, 2, 3]


def test_an_older_experiment_keeps_its_function(file: Path) -> None:
    changes = {"server.rounds": 1, "radio.design.truncation": 0.4}
    old = ap.Experiment.from_toml(file, changes, design=receiver())
    new = ap.Experiment.from_toml(file, changes, design=other_receiver())
    errors = [next(iter(experiment.rounds()))[1].mse for experiment in (old, new)]
    assert errors[0] != errors[1]
    assert errors[0] == next(iter(ap.Experiment.from_toml(file, changes, design=receiver()).rounds()))[1].mse


def halved(predicted, correct):
    return sum(a == b for a, b in zip(predicted, correct, strict=True)) / len(correct) / 2


def slow_sgd(lr: float, *, factor: float = 0.5):
    def update(gradient, state, value, count):
        return value - factor * lr * gradient, {"last": gradient}

    return (lambda value: {"last": torch.zeros_like(value)}), update


def halves(t, updates):
    return updates.by_task(lambda gradients, samples: 0.5 * gradients.mean(0))


def blocks_of_mine(rank_shared: int, rank_personal: int):
    from airpfed.model.methods import Block

    return Block(rank_shared, "global", "global"), Block(rank_personal, "device", "device")


def weak_channel(site, t, blocks):
    shape = (len(blocks), site.antennas * len(site.gain), site.gain.shape[1])
    rng = [torch.Generator().manual_seed(1000 * t + block) for block in blocks]
    return torch.stack([torch.randn(shape[1:], generator=g, dtype=torch.complex128) for g in rng]) * 1e-5


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"metric": halved}, "tasks.colours.metric"),
        ({"optimizer": slow_sgd}, "server.optimizer"),
        ({"aggregator": halves}, "server.aggregator"),
        ({"channel": weak_channel}, "radio.channel"),
    ],
)
def test_every_kind_of_function_runs_and_its_run_is_exported_without_it(
    file: Path, given: dict[str, Any], key: str, tmp_path: Path
) -> None:
    changes = {"server.rounds": 1}
    tree = settings_file.read_tree(file)
    if "aggregator" in given:
        tree["radio"] = {"scheme": "error_free"}
    experiment = ap.Experiment.from_dict(tree, changes, **given)
    run = experiment.run(tmp_path / "run")
    assert key in json.loads((run.folder / "environment.json").read_text())["functions"]
    for kind in KINDS.values():
        for function in given.values():
            kind.rows.data.pop(function.__name__, None)
    shutil.rmtree(run.folder / "adapters")
    assert len(run_module.export_run(run.folder, merged=False)) == 2
    assert set(ap.load_run(run.folder).adapters) == {"colours", "moods"}


def test_a_method_from_python_is_needed_for_its_models(file: Path, tmp_path: Path) -> None:
    """And devices with parts of their own have a model each."""
    run = ap.Experiment.from_toml(file, {"server.rounds": 1}, method=blocks_of_mine).run(tmp_path / "run")
    assert {task: list(folders) for task, folders in run.adapters.items()} == {"colours": [0, 1], "moods": [2, 3]}
    assert run.model("moods", 3).training is False
    for device, words in ((None, "device should be of 2, 3"), (0, "device should be of 2, 3")):
        with pytest.raises(UserError, match=words):
            run.model("moods", device)
    del KINDS["methods"].rows["blocks_of_mine"]
    assert set(ap.load_run(run.folder).adapters) == {"colours", "moods"}
    with pytest.raises(UserError, match=r"adapters\.method = .blocks_of_mine. needs the code of a notebook"):
        run_module.export_run(run.folder, merged=False)


def test_scores_by_another_metric_are_not_taken_from_the_cache(file: Path) -> None:
    """The base model's scores are kept by a key, and a function's name does not say what it measures."""

    def other() -> Callable[..., Any]:
        def halved(predicted, correct):
            return 0.25

        return halved

    keys = []
    for metric in (halved, other(), halved):
        experiment = ap.Experiment.from_toml(file, metric=metric)
        keys.append(experiments.load(experiment.settings, experiment.tasks).base_key)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    ("overrides", "given", "error", "words"),
    [
        ({"radio.design": "mmse"}, {"design": halved}, UserError, "radio.design: is set twice"),
        ({}, {"designs": halved}, TypeError, "unexpected argument 'designs'; should be one of design, "),
        ({}, {"design": "mmse"}, UserError, "should be a function or a row"),
        ({}, {"design": lambda problem: problem}, UserError, "a name should be letters"),
    ],
)
def test_what_is_no_function_of_its_kind_is_refused(file: Path, overrides, given, error, words: str) -> None:
    with pytest.raises(error, match=words):
        ap.Experiment.from_toml(file, overrides, **given)


# Runs


def test_records_are_a_table_of_numbers(whole: Path) -> None:
    run = ap.load_run(whole)
    records = records_of(whole)
    assert run.records["round"].tolist() == [1, 2, 3]
    assert run.records["loss/moods"].tolist() == [record.loss["moods"] for record in records]
    assert run.records["pi"].tolist() == [record.pi for record in records]
    assert run.records["accuracy/moods"].isna().tolist() == [True, False, True]
    assert all(kind.kind in "if" for kind in run.records.dtypes)


@pytest.mark.parametrize("settings", ["small_settings", "bert_settings"])
def test_predictions_are_those_that_the_run_is_scored_on(
    settings: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Base and adapter are loaded by PEFT, and texts are given the task's prompt."""
    changes = {"server.rounds": 2, "server.lr": 0.3, "adapters.layers": "last-2", "tasks.*.test_samples": 40}
    changes |= {"radio.design": "channel_inversion", "tasks.*.samples_per_device": 4, "model.max_tokens": 8}
    experiment = ap.Experiment.from_toml(request.getfixturevalue(settings), changes)
    run = experiment.run(tmp_path / "run")
    *_, (state, _) = experiment.rounds()
    setup = experiment.setup
    for number, task in enumerate(experiment.tasks):
        factors = model_of(setup.clients, vectors(state), number, 2 * number)
        view = setup.tasks[number]
        numbers = classify(setup.clients, factors, f"predictions {number}", view.test.prompts, view.choices)
        texts = [sample.prompt.removesuffix(" Label :") for sample in task.test]
        names = run.predict(texts, task.name)
        assert names == [task.names[index] for index in numbers]
        assert run.predict([{"text": texts[0], "label": "?"}], task.name) == names[:1]
        right = [name == task.names[sample.label] for name, sample in zip(names, task.test, strict=True)]
        assert sum(right) / len(right) == pytest.approx(run.summary.tasks[task.name].final)
    assert run.predict([], "moods") == []


def test_generated_texts_are_those_of_the_run(small_settings: Path, tmp_path: Path) -> None:
    tree = settings_file.read_tree(small_settings)
    tree["tasks"][1] |= {"kind": "generate", "max_new_tokens": 3}
    del tree["tasks"][1]["labels"]
    changes = {"server.rounds": 1, "adapters.layers": "last-2", "radio.design": "channel_inversion"}
    experiment = ap.Experiment.from_dict(tree, changes)
    run = experiment.run(tmp_path / "run")
    *_, (state, _) = experiment.rounds()
    setup = experiment.setup
    factors = model_of(setup.clients, vectors(state), 1, 2)
    prompts = [sample.ids for sample in setup.tasks[1].test.prompts]
    texts = [sample.prompt.removesuffix(" Label :") for sample in experiment.tasks[1].test]
    assert run.predict(texts, "moods") == complete(setup.clients, factors, prompts, 3)


def test_faults_of_questions_to_a_run_are_one_line(whole: Path, tmp_path: Path) -> None:
    run = ap.load_run(whole)
    questions: list[tuple[Callable[[], Any], str]] = [
        (lambda: run.model("mood"), "has no task 'mood', but colours, moods; did you mean 'moods'"),
        (lambda: run.model("moods", 1), "share one model; leave device = 1 out"),
        (lambda: run.predict("a text", "moods"), "should be a list of texts"),
        (lambda: run.predict([{"txt": "a"}], "moods"), "needs the column 'text'"),
        (lambda: ap.load_run(tmp_path), "not a run's directory"),
        (lambda: ap.load_run(tmp_path / "no"), "not a run's directory"),
    ]
    for question, words in questions:
        with pytest.raises(UserError, match=words) as caught:
            question()
        assert "\n" not in str(caught.value)
    (tmp_path / "experiment.toml").write_text("[server")
    with pytest.raises(UserError, match="not valid TOML"):
        ap.load_run(tmp_path)


def test_an_unfinished_run_opens(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "<b>"))
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "adapters")
    run = ap.load_run(copy)
    assert len(run.records) == 3 and run.adapters == {}
    with pytest.raises(UserError, match="no summary here"):
        _ = run.summary
    with pytest.raises(UserError, match="no adapter of moods here"):
        run.model("moods")
    assert "&lt;b&gt;" in run._repr_html_() and "<b>" not in run._repr_html_()
    assert "0.5" in ap.load_run(whole)._repr_html_() or "fine-tuned" in ap.load_run(whole)._repr_html_()


def test_code_of_a_folder_runs_only_on_request(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the folder's settings say."""
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    text = (copy / "experiment.toml").read_text()
    (copy / "experiment.toml").write_text(
        text.replace("trust_remote_code = false", "trust_remote_code = true").replace(
            "[model]\n", "[model]\ntrust_remote_code = true\n" if "trust_remote_code" not in text else "[model]\n"
        )
    )
    run = ap.load_run(copy)
    assert run.settings.model.trust_remote_code
    trusted: list[bool] = []
    load_adapter = library.export.load_adapter
    monkeypatch.setattr(
        library.export, "load_adapter", lambda *args: (trusted.append(args[-2]), load_adapter(*args))[1]
    )
    run.model("moods")
    run.model("moods", trust_remote_code=True)
    assert trusted == [False, True]


def test_an_adapter_is_not_put_on_another_base(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    environment = json.loads((copy / "environment.json").read_text())
    (copy / "environment.json").write_text(json.dumps(environment | {"base_sha256": "0" * 64}))
    with pytest.raises(UserError, match="has other files than when this adapter was trained"):
        ap.load_run(copy).model("moods")


# Examples of modules that are not public; tests/test_api.py runs those of the others


@pytest.mark.parametrize("module", [settings_file, user_rows])
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_a_function_and_its_options_may_be_a_pair(file: Path) -> None:
    def calm_sgd(lr: float, *, factor: float = 1.0):
        return ap.OPTIMIZERS["sgd"](lr * factor)

    experiment = ap.Experiment.from_toml(file, optimizer=(calm_sgd, {"factor": 0.5}))
    assert experiment.settings.server.optimizer.label == "calm_sgd(factor=0.5)"
