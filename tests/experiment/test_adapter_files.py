"""Model cards and task.json: the card's own code gives the run's test predictions, from an empty folder, by PEFT."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import metadata_load

import airpfed as ap
from airpfed.config import settings_file
from airpfed.core import run_files
from airpfed.experiment import adapter_files, artifacts
from airpfed.experiment import run as run_module
from airpfed.model import origin, zoo
from airpfed.model.chat import TEMPLATES
from airpfed.training.evaluate import model_of, predict_answers
from airpfed.training.state import vectors
from support.commands import command, good
from support.models import SMALL, save_bert
from support.settings import make_settings, save_settings

pytestmark = pytest.mark.usefixtures("shared_bases")

KINDS = {
    "words": {"labels": {"good": "good", "bad": "bad", "it": "it"}},
    "spaced": {"prompt": "{text} it: \n"},
    "odd": {"prompt": "} {text} {{it}} Label :"},
    "columns": {"prompt": "{text} {label} Label :"},
    "whole": {"labels": {"good": "good bad", "bad": "good", "it": "it is red"}},
    "mean": {"labels": {"good": "good bad", "bad": "good", "it": "it is red"}, "label_normalised": True},
    "head": {},
    "generate": {"kind": "generate", "max_new_tokens": 3},
}
"""Changes of the task moods."""


def export_random(run: ap.Run) -> list[Any]:
    """Export large random factors of the task moods, and answer its test split with them as a run does.

    A few rounds on a base of random weights leave models that give one class, which would hide faults; so the first
    seed is taken whose model gives several.
    """
    settings, setup, state = run_module.reopen_run(run.folder)
    clients, view, personal = setup.clients, setup.tasks[1], state.server.personal
    device = int((clients.task_of == 1).nonzero()[0])
    answers: list[Any] = []
    seed = 0
    while len(set(answers)) < 2:
        seed += 1
        value = torch.randn(personal.value.shape, generator=torch.Generator().manual_seed(seed))
        state = replace(state, server=replace(state.server, personal=replace(personal, value=value)))
        factors = model_of(clients, vectors(state), 1, device)
        answers = predict_answers(clients, factors, "random answers", view.test.prompts, view)
        if view.kind == "classify":
            answers = [view.names[index] for index in answers]
    artifacts.export_adapters(settings, setup, state, run.folder, merged=False)
    return answers


def card_code(folder: Path) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return code


@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_code_gives_the_runs_test_predictions(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder, with PEFT and transformers alone; also where prompts are cut."""
    if kind == "head":
        file = make_settings(tmp_path, save_bert(tmp_path / "bert", **SMALL, initializer_range=1.0), causal=False)
    else:
        file = save_settings(tmp_path, False)
    tree = settings_file.read_tree(file)
    tree["tasks"][1] |= KINDS[kind] | {"test_samples": 20}
    if kind == "generate":
        del tree["tasks"][1]["labels"]
    exp = ap.Experiment.from_dict(tree, {"server.rounds": 1, "model.max_tokens": 9})
    run = exp.run(tmp_path / "run")
    expected = export_random(run)
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in run.adapters["moods"].iterdir():
        shutil.copy(path, empty)
    code = card_code(empty)
    assert "airpfed" not in code
    assert len(code.partition("folder =")[2].strip().splitlines()) <= 24
    monkeypatch.chdir(empty)
    space: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), space)
    prompt = exp.settings.tasks[1].prompt
    by_prompt = {filled(prompt, row): row for row in rows_of(tmp_path / "moods.csv")}
    rows = [by_prompt[sample.prompt] for sample in exp.tasks[1].test]
    texts = rows if kind in ("columns", "odd") else [row["text"] for row in rows]
    assert [space["predict"](text) for text in texts] == expected
    assert run.predict(texts, "moods") == expected


@pytest.mark.parametrize("max_chars", [None, 3])
@pytest.mark.parametrize(
    "template",
    [
        "{text} :",
        "a {text} b {text}",
        "{text}{a}",
        "{{{text}}}",
        "{ {text}",
        "{text}}",
        "{x.y} {text}",
        "{größe}",
        "{a b}",
    ],
)
def test_the_cards_code_fills_a_prompt(template: str, max_chars: int | None) -> None:
    row = {"text": " {ab} cd ", "a": "{{x}}", "x.y": "1", "größe": "ß ", "a b": "two"}
    argument, code = adapter_files.prompt_code(template)
    needed = {name: row[name] for name in adapter_files.template_columns(template)}
    space = {"re": re, "task": {"prompt": template, "max_chars": max_chars}, "row": needed, "text": row["text"]}
    if argument == "text":
        space["text"] = next(iter(needed.values()))
    assert eval(code, space) == adapter_files.fill_template(template, row, max_chars)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def filled(template: str, row: dict[str, str]) -> str:
    return adapter_files.fill_template(template, row, None)


def test_a_card_says_what_the_run_says(tmp_path: Path) -> None:
    file = save_settings(tmp_path, False)
    out = tmp_path / "run"
    (tmp_path / "llama" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    assert run_module.run_file(file, ["run.seed=3"], out, False, "airpfed run `tiny`.toml") == 0
    run = ap.load_run(out)
    card = out / "adapters" / "moods" / "README.md"
    text, head = card.read_text(), metadata_load(card)
    assert head["library_name"] == "peft" and head["license"] == "apache-2.0" and "base_model" not in head
    (result,) = head["model-index"][0]["results"]
    scores = run.summary.tasks["moods"]
    assert result["metrics"][0] == {"type": "accuracy", "value": pytest.approx(scores.final, abs=1e-6)}
    assert f"| accuracy | {scores.base:.3f} | {scores.final:.3f} |" in text
    assert f"{scores.samples} samples, one run with seed 3:" in text
    assert "- command: `` airpfed run '`tiny`.toml' ``" in text
    environment = json.loads((out / "environment.json").read_text())
    assert f"`{environment['base_sha256']}`" in text
    assert '"good": " good"' in text and "{text} Label :" in text
    task = run_files.read_json(card.with_name("task.json"), run_files.AdapterTask)
    assert task is not None and task.id2label == {"0": "good", "1": "bad", "2": "it"}
    assert (task.prompt, task.max_tokens, task.label_score) == ("{text} Label :", 24, "first_token")
    assert task.base_sha256 == environment["base_sha256"]


def test_the_base_on_the_hub_is_named() -> None:
    for name, hub in (("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("minilm", zoo.MODELS["minilm"].hub)):
        facts = origin.base_facts(name, origin.Origin("/cache/x"))
        assert facts == origin.BaseFacts(zoo.MODELS[name].title, hub, "Apache-2.0")
    task = run_files.AdapterTask(
        name="a", kind="classify", prompt="{text}", text_column="text", max_chars=None, max_tokens=8, labels={},
        label_score="first_token", id2label={}, label2id={}, max_new_tokens=None, end_tokens=[], base="b",
        base_revision=None, base_sha256="",
    )  # fmt: skip
    head = yaml.safe_load(adapter_files.card_head(task, facts, True, None, merged=True))
    assert head["base_model"] == "sentence-transformers/all-MiniLM-L6-v2" and head["license"] == "apache-2.0"
    assert head["base_model_relation"] == "finetune" and "model-index" not in head


@pytest.mark.parametrize(
    "text", ["no card", "---\nlicense: [a, b]\n---\n", "---\n[\n---\n", "---\nlicense: a b\n---\n"]
)
def test_a_licence_that_is_no_name_is_not_known(text: str, tmp_path: Path) -> None:
    assert origin.licence_of(tmp_path / "README.md") == ""
    (tmp_path / "README.md").write_text(text)
    assert origin.licence_of(tmp_path / "README.md") == ""


def test_fences_hold_any_text() -> None:
    """A prompt of three backticks does not end its block."""
    start, text, end = adapter_files.fence("a\n```\nb", "text")
    assert (start, text, end) == ("````text", "a\n```\nb", "````")


def test_a_second_export_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """Files of the tokenizer may differ from version to version; a user's own file is not lost."""
    file = save_settings(tmp_path, False)
    exp = ap.Experiment.from_toml(file, {"server.rounds": 1})
    run = exp.run(tmp_path / "run")
    folder = run.adapters["moods"]
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "README.md").write_text("old")
    run_module.export_run(run.folder, merged=False)
    assert not (folder / "special_tokens_map.json").exists() and "# moods" in (folder / "README.md").read_text()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ap.UserError, match=r"notes\.txt: was not written by airpfed"):
        run_module.export_run(run.folder, merged=False)
    assert artifacts.environment_of(run.folder)["command"] == "airpfed.Experiment.run"


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_a_chat_answers_from_its_folder_as_in_its_run(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By texts, and by conversations of a file."""
    file = save_settings(tmp_path, False)
    tree = settings_file.read_tree(file)
    tree["tasks"][1] |= {
        "kind": "chat",
        "max_new_tokens": 3,
        "template": template,
        "prompt": "Say {text}",
        "system": "ba",
        "max_chars": 8,
    }
    del tree["tasks"][1]["labels"]
    run = ap.Experiment.from_dict(tree, {"server.rounds": 1, "server.lr": 0.3}).run(tmp_path / "run")
    folder = Path(shutil.copytree(run.adapters["moods"], tmp_path / "alone"))
    texts = ["ba be bi", "ka ke ki ko", "ba be bi"]
    replies = run.predict(texts, "moods")
    assert ap.predict(folder, texts) == replies and replies[0] == replies[2]
    code = card_code(folder)
    assert "airpfed" not in code and len(code.partition("folder =")[2].strip().splitlines()) <= 30
    monkeypatch.chdir(folder)
    space: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), space)
    assert [space["predict"](text) for text in texts] == replies
    task = json.loads((folder / "task.json").read_text())
    assert task["turn_end"] or set(task["end_tokens"]), "something ends a reply"
    (tmp_path / "in.txt").write_text("\n".join(texts))
    out = good(command("predict", folder, tmp_path / "in.txt", "--json")).out.splitlines()
    assert [json.loads(line)["prediction"] for line in out] == replies
