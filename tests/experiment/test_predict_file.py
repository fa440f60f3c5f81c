"""`airpfed predict`: the run's own test predictions, from files of every kind; faults are one line."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import airpfed as ap
from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.experiment import run as run_module
from support.commands import Done, command, good
from support.models import SMALL, save_bert
from support.settings import make_settings, save_settings

pytestmark = pytest.mark.usefixtures("shared_bases")

CHANGES = ("server.rounds=2", "server.lr=0.3", "tasks.*.test_samples=24", "model.max_tokens=8")
"""Steps so large that models give several classes."""


@pytest.fixture(scope="module", params=["causal", "classifier"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ap.Run:
    """A run of two tasks: labels as words of a causal LM, or outputs of a classifier."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "causal":
        file = save_settings(folder, False)
    else:
        file = make_settings(folder, save_bert(folder / "bert", **SMALL, initializer_range=1.0), causal=False)
    out = folder / "run"
    assert run_module.run_file(file, list(CHANGES), out, False, "airpfed run tiny.toml") == 0
    return ap.load_run(out)


@pytest.fixture(scope="module")
def test_split(run: ap.Run) -> list[tuple[str, str]]:
    """The text and the class of each test sample of the task moods."""
    task = ap.Experiment(run.settings).tasks[1]
    return [(sample.prompt.removesuffix(" Label :"), task.names[sample.label]) for sample in task.test]


def write_csv(file: Path, column: str, split: list[tuple[str, str]]) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([column, "truth"])
        writer.writerows(split)
    return file


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def one_line(done: Done, *words: str) -> None:
    assert done.code == 2 and not done.traceback, (done.err, done.traceback)
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert all(word in done.err for word in words), done.err


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_the_summarys_accuracy_is_that_of_the_answers(run: ap.Run, test_split, tmp_path: Path) -> None:
    """From a run and from its adapter's folder alone; probabilities are a softmax of the scores."""
    file = write_csv(tmp_path / "test.csv", "text", test_split)
    done = good(command("predict", run.folder, file, "--task", "moods"))
    rows = rows_of(done.out)
    assert list(rows[0]) == ["text", "truth", "prediction", "probability", "p_good", "p_bad", "p_it"]
    right = [row["prediction"] == row["truth"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(run.summary.tasks["moods"].final)
    for row in rows:
        chances = {name: float(row[f"p_{name}"]) for name in ("good", "bad", "it")}
        assert sum(chances.values()) == pytest.approx(1, abs=3e-6)
        assert float(row["probability"]) == max(chances.values()) == chances[row["prediction"]]
    assert len({row["prediction"] for row in rows}) > 1
    alone = Path(shutil.copytree(run.adapters["moods"], tmp_path / "alone"))
    assert good(command("predict", alone, file)).out == done.out
    texts = [text for text, _ in test_split]
    names = [row["prediction"] for row in rows]
    assert run.predict(texts, "moods") == names == ap.predict(alone, texts)
    table = run.predict_proba(texts, "moods")
    assert [f"{value:.6f}" for value in table["bad"]] == [row["p_bad"] for row in rows]


def test_a_classifier_has_no_adapter_for_llama_cpp(run: ap.Run) -> None:
    classifier = "head" in json.loads((run.adapters["moods"] / "task.json").read_text())["label_score"]
    done = command("export", run.folder, "--gguf")
    if classifier:
        one_line(done, "--gguf: the base is a classifier")
    else:
        assert good(done).out.splitlines()[-1] == f"{run.folder / 'gguf'}: adapters for llama.cpp"
    assert (run.folder / "gguf" / "moods.gguf").is_file() != classifier


def test_merged_weights_answer_alike(run: ap.Run, test_split, tmp_path: Path) -> None:
    good(command("export", run.folder, "--merged"))
    texts = [text for text, _ in test_split]
    merged = run.folder / "merged" / "moods"
    assert ap.predict(merged, texts) == run.predict(texts, "moods")
    config = json.loads((merged / "config.json").read_text())
    if config["model_type"] == "bert":
        assert config["id2label"] == {"0": "good", "1": "bad", "2": "it"}
    assert "library_name: transformers" in (merged / "README.md").read_text()
    (merged / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        ap.predict(merged, texts)


@pytest.mark.parametrize("kind", ["jsonl", "json", "lines", "csv"])
@pytest.mark.parametrize("through", ["file", "stdin", "out"])
def test_every_kind_of_input_gives_the_same(
    run: ap.Run, test_split, kind: str, through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text for text, _ in test_split[:5]]
    objects = [{"text": text, "number": str(number)} for number, text in enumerate(texts)]
    match kind:
        case "jsonl":
            content = "".join(json.dumps(row) + "\n" for row in objects)
        case "json":
            content = json.dumps(objects)
        case "csv":
            content = "text,number\n" + "".join(f"{row['text']},{row['number']}\n" for row in objects)
        case _:
            content = "\n".join(texts) + "\n"
    names = run.predict(texts, "moods")
    words = ["predict", str(run.folder), "-", "--task", "moods", "--format", kind]
    if through == "stdin":
        stdin(monkeypatch, content)
        rows = rows_of(good(command(*words)).out)
    else:
        file = tmp_path / f"in.{'txt' if kind == 'lines' else kind}"
        file.write_text(content)
        words[2:] = [str(file), "--task", "moods"]
        if through == "file":
            rows = [json.loads(line) for line in good(command(*words, "--json")).out.splitlines()]
            assert all(set(row["probabilities"]) == {"good", "bad", "it"} for row in rows)
        else:
            done = good(command(*words, "--out", tmp_path / "o.csv"))
            assert done.out == f"{tmp_path / 'o.csv'}: 5 answers\n"
            rows = rows_of((tmp_path / "o.csv").read_text())
    assert [row["prediction"] for row in rows] == names
    assert [row["text"] for row in rows] == texts
    if kind != "lines":
        assert [row["number"] for row in rows] == list("01234")


def test_a_column_of_another_name_and_rows_without_text(run: ap.Run, test_split, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "x.csv", "prediction", [*test_split[:2], ("  ", "none")])
    one_line(command("predict", run.folder, file, "--task", "moods"), "has no column 'text'", "--column NAME")
    done = good(command("predict", run.folder, file, "--task", "moods", "--column", "prediction"))
    rows = rows_of(done.out)
    assert done.err == "1 of 3 rows have no text, and no answer\n"
    assert [row["prediction_"] for row in rows] == [*run.predict([t for t, _ in test_split[:2]], "moods"), ""]
    assert rows[2]["p_good"] == ""
    as_json = good(command("predict", run.folder, file, "--task", "moods", "--column", "prediction", "--json")).out
    assert json.loads(as_json.splitlines()[2])["prediction_"] is None


def test_faults_are_one_line(run: ap.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("text\nba be\n")
    (tmp_path / "b.csv").write_text('text\n"ba')
    (tmp_path / "c.jsonl").write_text('{"text": ["ba"]}\n')
    (tmp_path / "d.txt").write_bytes(b"\xff\xfeab")
    (tmp_path / "e.doc").write_text("ba")
    folder, task = run.folder, ("--task", "moods")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((folder, tmp_path / "a.csv"), "has the tasks colours, moods; --task NAME chooses one"),
        ((folder, tmp_path / "a.csv", "--task", "mood"), "did you mean 'moods'"),
        ((folder, tmp_path / "a.csv", *task, "--device", 1), "leave device = 1 out"),
        ((folder, tmp_path / "a.csv", *task, "--column", "txt"), "did you mean 'text'"),
        ((folder, tmp_path / "a.csv", *task, "--format", "cvs"), "did you mean 'csv'"),
        ((folder, tmp_path / "a.csv", *task, "--out", tmp_path / "o.txt"), "ends in .csv or .jsonl"),
        ((folder, tmp_path / "b.csv", *task), "not a well-formed .csv file"),
        ((folder, tmp_path / "c.jsonl", *task), "row 1 holds a list in column 'text'"),
        ((folder, tmp_path / "d.txt", *task), "not UTF-8 text"),
        ((folder, tmp_path / "e.doc", *task), "no known ending"),
        ((folder, tmp_path / "none.txt", *task), "no such file"),
        ((folder, tmp_path / "none.csv", *task), "no such file"),
        ((tmp_path, tmp_path / "a.csv"), "neither a run"),
        ((run.adapters["moods"], tmp_path / "a.csv", "--task", "colours"), "is the model of task moods"),
        ((run.adapters["moods"], tmp_path / "a.csv", "--device", 0), "leave --device out"),
        ((run.adapters["moods"], tmp_path / "a.csv", "--base", tmp_path), "no config.json in this directory"),
    ]
    for words, message in cases:
        one_line(command("predict", *map(str, words)), message)
    stdin(monkeypatch, "text\nba,ba\n")
    one_line(command("predict", folder, "-", *task, "--format", "csv"), "standard input: ", "more fields")


def damaged(folder: Path, name: str, change: Callable[[dict], object]) -> Path:
    tree = json.loads((folder / name).read_text())
    change(tree)
    (folder / name).write_text(json.dumps(tree))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("task.json", lambda tree: tree.pop("prompt"), "damaged, or of another version"),
        ("task.json", lambda tree: tree.update(format=2), "damaged, or of another version"),
        ("task.json", lambda tree: tree.update(base_sha256="0" * 64), "other files than when this adapter was trained"),
        ("adapter_config.json", lambda tree: tree.update(peft_type="LOHA"), "should be a plain LoRA adapter, not LOHA"),
        ("adapter_config.json", lambda tree: tree.update(megatron_config={"a": 1}), "not megatron_config"),
        ("adapter_config.json", lambda tree: tree.pop("task_type"), "missing or damaged"),
    ],
)
def test_a_folder_from_somebody_else_loads_no_code(run: ap.Run, name: str, change, words: str, tmp_path: Path) -> None:
    folder = damaged(Path(shutil.copytree(run.adapters["moods"], tmp_path / "a")), name, change)
    with pytest.raises(UserError, match=words) as caught:
        ap.predict(folder, ["ba be"])
    assert "\n" not in str(caught.value)


def test_only_safetensors_are_read(run: ap.Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.adapters["moods"], tmp_path / "a"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="read from safetensors only"):
        ap.predict(folder, ["ba be"])
    (folder / "task.json").unlink()
    with pytest.raises(UserError, match=r"task\.json: missing; `airpfed export"):
        ap.predict(folder, ["ba be"])


def test_an_adapter_of_an_older_version_answers_from_the_run(run: ap.Run, test_split, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "old"))
    for name in ("task.json", "README.md", "tokenizer.json", "tokenizer_config.json"):
        (copy / "adapters" / "moods" / name).unlink()
    texts = [text for text, _ in test_split]
    assert ap.load_run(copy).predict(texts, "moods") == run.predict(texts, "moods")


def test_a_base_that_has_moved_is_named(run: ap.Run, tmp_path: Path) -> None:
    base = Path(run.settings.model.base)
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    folder = damaged(
        Path(shutil.copytree(run.adapters["moods"], tmp_path / "a")),
        "task.json",
        lambda tree: tree.update(base="/none"),
    )
    with pytest.raises(UserError, match=r'model\.base = "/none"'):
        ap.predict(folder, ["ba be"])
    assert ap.predict(folder, ["ba be"], str(moved)) == run.predict(["ba be"], "moods")
    assert run.predictor("moods", base=str(moved)).predict(["ba be"]) == run.predict(["ba be"], "moods")


def test_generated_text_and_several_columns(tmp_path: Path) -> None:
    file = save_settings(tmp_path, False)
    tree = settings_file.read_tree(file)
    tree["tasks"][1] |= {"kind": "generate", "max_new_tokens": 3, "prompt": "{text} is {label} Label :"}
    del tree["tasks"][1]["labels"]
    run = ap.Experiment.from_dict(tree, {"server.rounds": 1}).run(tmp_path / "run")
    rows = [{"text": "ba be", "label": "it"}, {"text": "ka", "label": "good"}]
    data = tmp_path / "in.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = good(command("predict", run.folder, data, "--task", "moods", "--json")).out.splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == run.predict(rows, "moods")
    with pytest.raises(UserError, match="needs the column 'label'"):
        run.predict(["ba be"], "moods")
    with pytest.raises(UserError, match="generates text"):
        run.predict_proba(rows, "moods")
    (tmp_path / "in.txt").write_text("ba be\n")
    one_line(command("predict", run.folder, tmp_path / "in.txt", "--task", "moods"), "needs the columns text, label")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ap.Run:
    """A run whose task moods replies to conversations of the column `talk`."""
    folder = tmp_path_factory.mktemp("chat")
    tree = settings_file.read_tree(save_settings(folder, False))
    rows = rows_of((folder / "moods.csv").read_text())
    talks = [[{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}] for row in rows]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"talk": talk}) + "\n" for talk in talks))
    kept = {key: tree["tasks"][1][key] for key in ("name", "devices", "samples_per_device") if key in tree["tasks"][1]}
    tree["tasks"][1] = kept | {
        "source": str(folder / "talks.jsonl"), "kind": "chat", "messages": "talk", "template": "plain",
        "max_new_tokens": 2, "dev_samples": 2, "test_samples": 4,
    }  # fmt: skip
    return ap.Experiment.from_dict(tree, {"server.rounds": 1}).run(folder / "run")


def test_conversations_of_a_file_are_answered(chat: ap.Run, tmp_path: Path) -> None:
    """Cells of JSON come back as they were; what is too long is counted, and what cannot be answered names its row."""
    talk = [{"role": "user", "content": "ba be bi"}]
    rows = [{"talk": talk, "id": 1, "ok": True, "none": None}, {"talk": "", "id": 2, "ok": False, "none": None}]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = good(command("predict", chat.folder, file, "--task", "moods", "--json"))
    out = [json.loads(line) for line in done.out.splitlines()]
    assert [row | {"prediction": None} for row in out] == [row | {"prediction": None} for row in rows]
    assert out[0]["prediction"] == chat.predict([talk], "moods")[0] and out[1]["prediction"] is None
    assert done.err == "1 of 2 rows have no text, and no answer\n"
    long = [{"role": role, "content": "ba be bi bo " * 4} for _ in range(4) for role in ("user", "assistant")][:-1]
    file.write_text(json.dumps({"said": long}) + "\n")
    done = good(command("predict", chat.folder, file, "--task", "moods", "--column", "said"))
    assert "1 of 1 conversations exceed the task's" in done.err
    file.write_text('{"talk": [{"role": "user", "content": " "}], "a": "\\ud800", "b": NaN}\n')
    done = good(command("predict", chat.folder, file, "--task", "moods", "--json"))
    assert done.err == "1 of 1 rows have no text, and no answer\n"
    row = json.loads(done.out)
    assert (row["a"], row["b"], row["prediction"]) == ("", "", None), "what JSON cannot write is text"
    both = [{"talk": talk, "question": text} for text in ("[Note] ba be", "{ka}")]
    file.write_text("".join(json.dumps(row) + "\n" for row in both))
    done = good(command("predict", chat.folder, file, "--task", "moods", "--column", "question", "--json"))
    answers = [json.loads(line)["prediction"] for line in done.out.splitlines()]
    assert answers == chat.predict([row["question"] for row in both], "moods"), "a column of texts"
    for wrong, words in (
        ([*talk, {"role": "assistant", "content": "x"}], "row 1 ends with a message of assistant"),
        ([{"role": "oracle", "content": "x"}], "row 1 holds a message of 'oracle'"),
        ([["user"]], "row 1 holds list in place of a message"),
    ):
        file.write_text(json.dumps({"talk": wrong}) + "\n")
        one_line(command("predict", chat.folder, file, "--task", "moods"), str(file), words)
    file.write_text(json.dumps({"chat": talk}) + "\n")
    one_line(
        command("predict", chat.folder, file, "--task", "moods"), "no column 'text'", "nor 'talk'", "or the messages"
    )
    one_line(command("predict", chat.folder, file, "--out", tmp_path / "no" / "o.csv"), "there is no folder")
