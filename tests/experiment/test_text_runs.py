"""Runs whose answers are texts or whole words: chats from file to prediction, several metrics."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import airpfed as ap
from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.experiment import build
from airpfed.experiment.data_report import data_lines, report_data
from airpfed.federation import build_federation, provisioning
from airpfed.federation.addresses import check_federable
from airpfed.federation.provisioning import FederationPlan, provision
from airpfed.model.tokens import IGNORED
from airpfed.training.evaluate import model_of, predict_answers
from airpfed.training.state import vectors
from support.models import WORDS
from support.settings import make_settings

pytestmark = pytest.mark.usefixtures("shared_bases")

FAST = {
    "server.rounds": 1,
    "adapters.layers": "last-2",
    "radio.design": "channel_inversion",
    "radio.coherence_symbols": 5000,
    "tasks.*.test_samples": 6,
    "tasks.*.dev_samples": 3,
}
SYLLABLES = WORDS[14:]


def write_chats(path: Path, turns: int = 2, words: int = 3, count: int = 60) -> Path:
    """Conversations in which a reply is the message's words in capitals of the toy vocabulary: `red` after each."""
    rng = random.Random(0)

    def message() -> str:
        return " ".join(rng.choice(SYLLABLES) for _ in range(words))

    chats = [
        [
            message_of
            for _ in range(turns)
            for message_of in ({"from": "human", "value": message()}, {"from": "gpt", "value": f"red {message()}"})
        ]
        for _ in range(count)
    ]
    path.write_text("\n".join(json.dumps({"talk": {"conversations": chat}}) for chat in chats))
    return path


@pytest.fixture
def chat_tree(small_settings: Path) -> dict[str, Any]:
    """Settings of a classification and a chat. The plain template's marks are unknown words, apart from the colon."""
    tree = settings_file.read_tree(small_settings)
    task = tree["tasks"][1]
    for key in ("labels", "prompt"):
        del task[key]
    source = str(write_chats(small_settings.parent / "chats.jsonl"))
    task |= {"source": source, "kind": "chat", "messages": "talk", "template": "plain", "max_new_tokens": 4}
    task |= {"metric": "perplexity", "further_metrics": ["token_f1", {"name": "token_f1", "normalise": False}]}
    tree["tasks"][0]["further_metrics"] = ["macro_f1"]
    return dict(tree)


def test_a_chat_runs_from_the_file_to_the_prediction(chat_tree: dict[str, Any], tmp_path: Path) -> None:
    experiment = ap.Experiment.from_dict(chat_tree, {**FAST, "server.rounds": 3, "server.lr": 0.05})
    run = experiment.run(tmp_path / "run")
    task = run.summary.tasks["moods"]
    assert task.metric == "perplexity" and not task.larger_is_better and task.final is not None
    assert 1 < task.final < task.base < 3 * len(WORDS)  # a random model says every word alike
    assert list(task.base_metrics) == list(task.final_metrics) == ["token_f1", "token_f1(normalise=false)"]
    assert list(run.summary.tasks["colours"].final_metrics) == ["macro_f1"]
    assert run.summary.tasks["colours"].larger_is_better
    *_, (state, _) = experiment.rounds()
    setup = experiment.setup
    view, factors = setup.tasks[1], model_of(setup.clients, vectors(state), 1, 2)
    answers = predict_answers(setup.clients, factors, "test", view.test.prompts, view)
    talks = [[{"role": r, "content": c} for r, c in s.messages[:-1]] for s in experiment.tasks[1].test]
    assert run.predict([{"talk": talk} for talk in talks], "moods") == answers
    assert isinstance(run.predict([f"{SYLLABLES[0]} {SYLLABLES[1]}"], "moods")[0], str)
    with pytest.raises(UserError, match="ends with a message of assistant"):
        run.predict([{"talk": [*talks[0], {"role": "assistant", "content": "a"}]}], "moods")
    assert "token_f1(normalise=false)" in run.report.read_text(encoding="utf-8")


def test_perplexity_is_that_of_the_model_run_alone(chat_tree: dict[str, Any]) -> None:
    experiment = ap.Experiment.from_dict(chat_tree, FAST)
    setup = experiment.setup
    model, total, count = setup.clients.backbone.model, 0.0, 0
    for sample in setup.tasks[1].test.references:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sample.ids])).logits[0].double().log_softmax(-1)
        for offset, target in enumerate(reversed(sample.targets), 1):
            if target != IGNORED:
                total, count = total - float(logits[-offset, target]), count + 1
    untouched = experiment.scores(next(experiment.rounds())[0])["moods"]
    assert untouched > 0 and count > 20
    from airpfed.training.evaluate import score

    assert score(setup.clients, None, setup.tasks[1], "test").value == pytest.approx(
        float(torch.tensor(total / count).exp()), rel=1e-5
    )


def test_what_a_chat_loses_is_counted(chat_tree: dict[str, Any], small_settings: Path) -> None:
    chat_tree["tasks"][1]["source"] = str(write_chats(small_settings.parent / "long.jsonl", turns=4, words=12))
    settings = settings_file.settings_from_tree(chat_tree, "x", small_settings.parent, [], [])
    tasks = build.load_tasks(settings)
    setup = build.build_experiment(settings, tasks)
    report = report_data(settings, tasks, setup)["moods"]
    shards = [sample for shard in setup.clients.shards[2:] for sample in shard]
    assert max(len(sample.ids) for sample in shards) <= settings.model.max_tokens == 24
    ended = sum(sample.targets[-1] == setup.clients.backbone.end_tokens[0] for sample in shards)
    assert report.answers_cut == pytest.approx(1 - ended / len(shards)) and report.answers_cut_tokens is not None
    text = "\n".join(data_lines({"moods": report}))
    assert "model.max_tokens leaves 72 exchanges out at the beginning of 24 of 24 conversations, 72 replies" in text
    assert "of the answers" in text and "replies of dev and test: their perplexity is that of their beginning" in text


def test_a_device_reads_its_share_of_a_chat_back(chat_tree: dict[str, Any], small_settings: Path) -> None:
    settings = settings_file.settings_from_tree(chat_tree, "x", small_settings.parent, [], [])
    site = small_settings.parent / "site"
    provision(site, settings, FederationPlan("hub.example:9500", ("hub.example",), True, 30, 9100))
    tasks = build.load_tasks(settings)
    mine = build_federation.node_tasks(settings_file.read_settings(site / "device-3" / "device.toml"), 3)
    assert mine[1].train[1] == tasks[1].train[1] and mine[1].kind == "chat"
    assert [provisioning.plain(s) for s in mine[1].train[1]] == [provisioning.plain(s) for s in tasks[1].train[1]]
    assert settings_file.read_settings(site / "device-3" / "device.toml").tasks[1].template == "plain"


def test_devices_with_models_of_their_own_cannot_be_scored_by_likelihoods(
    chat_tree: dict[str, Any], small_settings: Path
) -> None:
    """In a federation, they are asked for answers, and do not see the right ones."""
    chat_tree["adapters"]["method"] = "fedsa"
    settings = settings_file.settings_from_tree(chat_tree, "x", small_settings.parent, [], [])
    with pytest.raises(
        UserError, match=r'^tasks\.moods\.metric = "perplexity" with parameters of devices: not possible'
    ):
        check_federable(settings)
    chat_tree["adapters"]["method"] = "airpfed"
    check_federable(settings_file.settings_from_tree(chat_tree, "x", small_settings.parent, [], []))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "macro_f1"}, 'tasks.moods.metric = "macro_f1": is for classify tasks, not chat'),
        ({"further_metrics": ["accuracy"]}, 'tasks.moods.further_metrics = "accuracy": is for classify tasks'),
        ({"further_metrics": ["token_f1", "token_f1"]}, '"token_f1" stands twice'),
        ({"further_metrics": ["fluency"]}, "should be one of auto, accuracy"),
        ({"template": ""}, "the base's tokenizer has no chat template; should be one of chatml"),
        ({"messages": "speech"}, "tasks.moods.messages names 'speech'"),
    ],
)
def test_faults_of_chats_are_one_line(
    changes: dict[str, Any], words: str, chat_tree: dict[str, Any], tmp_path: Path
) -> None:
    chat_tree["tasks"][1] |= changes
    with pytest.raises(UserError) as caught:
        _ = ap.Experiment.from_dict(chat_tree, FAST).setup
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_whole_words_run_and_predict_as_they_were_scored(small_llama: Path, tmp_path: Path) -> None:
    file = make_settings(tmp_path, small_llama)
    labels = 'tasks.moods.labels={good=" good", bad=" good bad", it=" red it is"}'
    changes = [*(f"{key}={value}" for key, value in FAST.items()), labels, "server.lr=0.1", "server.rounds=2"]
    experiment = ap.Experiment.from_toml(file, changes)
    run = experiment.run(tmp_path / "run")
    *_, (state, _) = experiment.rounds()
    setup, task = experiment.setup, experiment.tasks[1]
    view, factors = setup.tasks[1], model_of(setup.clients, vectors(state), 1, 2)
    assert view.words and not view.choices
    notes = report_data(experiment.settings, experiment.tasks, setup)["moods"].notes
    assert "a class is scored by all 2 to 3 tokens of its label word, not by the first alone" in notes
    numbers = predict_answers(setup.clients, factors, "test", view.test.prompts, view)
    texts = [sample.prompt.removesuffix(" Label :") for sample in task.test]
    assert run.predict(texts, "moods") == [task.names[number] for number in numbers]
    right = [number == sample.label for number, sample in zip(numbers, task.test, strict=True)]
    assert sum(right) / len(right) == pytest.approx(run.summary.tasks["moods"].final)
