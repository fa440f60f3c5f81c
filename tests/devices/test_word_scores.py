"""Scores of whole label words, held against the model run alone word by word, and against first tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.devices import evaluate
from airpfed.devices.evaluate import (
    NO_ANSWER,
    classify,
    classify_words,
    last_scores,
    log_probabilities,
    word_contexts,
    word_scores,
)
from airpfed.devices.gradients import loss_gradient
from airpfed.model.methods import blocks_of
from airpfed.training.evaluate import model_of, predict_answers
from airpfed.training.setup import TrainingSetup
from support.experiments import experiment_of, random_vectors
from support.single_device import one_device

WORDS = 'tasks.moods.labels={good=" good", bad=" good bad", it=" red it is"}'


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    return experiment_of(settings_file.read_settings(file, ["tasks.*.test_samples=14", *overrides]))


def alone_scores(file: Path, base: Path, made: TrainingSetup, words: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Log-probabilities by the third device's model, prompt by prompt and word by word, without padding."""
    values = random_vectors(made)
    alone = one_device(base, made.clients, blocks_of("airpfed", 2, 2))
    none = torch.zeros(0)
    rows = {"global": values["global"][0], "task": values["task"][1], "device": none, "frozen": none}
    scores = torch.empty(len(made.tasks[1].test.prompts), len(words))
    with torch.no_grad(), alone.hooked(alone.cut(rows)):
        for number, sample in enumerate(made.tasks[1].test.prompts):
            for index, word in enumerate(words):
                logits = alone.model(input_ids=torch.tensor([sample.ids + word[:-1]])).logits[0]
                values_of_word = logits[len(sample.ids) - 1 :].double().log_softmax(-1)
                scores[number, index] = sum(float(values_of_word[j, token]) for j, token in enumerate(word))
    return scores


def test_a_words_score_is_the_sum_of_its_tokens(llama_settings: Path, tiny_llama: Path) -> None:
    made = experiment(llama_settings, WORDS)
    task = made.tasks[1]
    assert [len(word) for word in task.words] == [2, 2, 3] and not task.choices
    factors = model_of(made.clients, random_vectors(made), 1, 2)
    scores = word_scores(made.clients, factors, "test", task.test.prompts, task.words)
    expected = alone_scores(llama_settings, tiny_llama, made, task.words)
    assert torch.allclose(scores, expected, rtol=1e-5, atol=1e-4)
    answers = predict_answers(made.clients, factors, "test moods", task.test.prompts, task)
    assert answers == expected.argmax(1).tolist()
    means = word_scores(made.clients, factors, "test", task.test.prompts, task.words, normalised=True)
    assert torch.allclose(means, expected / torch.tensor([2, 2, 3]), rtol=1e-5, atol=1e-4)


def test_words_of_one_token_score_as_first_tokens_do(llama_settings: Path) -> None:
    first, whole = experiment(llama_settings), experiment(llama_settings, "tasks.*.label_score=words")
    assert first.tasks[1].words == () and whole.tasks[1].words == tuple((token,) for token in first.tasks[1].choices)
    assert first.clients.shards == whole.clients.shards
    factors = model_of(first.clients, random_vectors(first), 1, 2)
    task = first.tasks[1]
    scores = word_scores(whole.clients, factors, "test", task.test.prompts, whole.tasks[1].words)
    rows = list(range(len(task.test.prompts)))
    logits = last_scores(first.clients, factors, "test", task.test.prompts, rows)
    assert torch.allclose(scores, logits.log_softmax(-1)[:, list(task.choices)], atol=1e-5)
    assert predict_answers(whole.clients, factors, "w", task.test.prompts, whole.tasks[1]) == classify(
        first.clients, factors, "w", task.test.prompts, task.choices
    )
    gradients = [loss_gradient(made.clients, factors, [2], [[0, 1]])[1] for made in (first, whole)]
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


def test_training_reads_the_tokens_that_are_scored(llama_settings: Path) -> None:
    made = experiment(llama_settings, WORDS)
    task = made.tasks[1]
    targets = {sample.targets for shard in made.clients.shards[2:] for sample in shard}
    assert targets == set(task.words)
    for shard in made.clients.shards[2:]:
        assert all(sample.ids[len(sample.ids) - len(sample.targets) + 1 :] == sample.targets[:-1] for sample in shard)


def test_contexts_are_the_longest_beginnings() -> None:
    assert word_contexts([(1,), (2,)]) == [()]
    assert word_contexts([(1, 2), (1, 3), (4,), (5, 9), (5, 6, 7)]) == [(1,), (5, 6)]


def test_small_batches_give_the_same_scores(llama_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = experiment(llama_settings, WORDS)
    task = made.tasks[1]
    scores = [word_scores(made.clients, None, "test", task.test.prompts, task.words)]
    monkeypatch.setattr(evaluate, "LOGIT_BYTES", 1)
    scores.append(word_scores(made.clients, None, "other", task.test.prompts, task.words))
    assert torch.allclose(*scores, atol=1e-5)


def test_a_model_without_finite_scores_has_no_answer(llama_settings: Path) -> None:
    made = experiment(llama_settings, WORDS)
    task = made.tasks[1]
    factors = model_of(made.clients, random_vectors(made), 1, 2)
    broken = {key: tensor * float("nan") for key, tensor in factors.items()}
    assert set(classify_words(made.clients, broken, "test", task.test.prompts, task.words)) == {NO_ANSWER}


def test_log_probabilities_sum_to_one() -> None:
    values = log_probabilities(1e4 * torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(values.exp().sum(-1), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("settings", "override", "message"),
    [
        ("bert_settings", "tasks.*.label_score=words", "label_score = \"words\": the base is a classifier"),
        ("llama_settings", 'tasks.moods.labels={good=" good", bad=" bad", it=" it it it it it it it it it it it it it'
         ' it it"}', "has 15 tokens, more than half of model.max_tokens = 24"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line(
    settings: str, override: str, message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(UserError) as caught:
        experiment(request.getfixturevalue(settings), override, "tasks.moods.label_score=words")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_untouched_scores_are_shared_by_equal_words_only(llama_settings: Path) -> None:
    keys = {
        experiment(llama_settings, *overrides).base_key
        for overrides in ((), (WORDS,), (WORDS, "tasks.moods.label_normalised=true"))
    }
    assert len(keys) == 3
    made = experiment(llama_settings, WORDS)
    assert replace(made.tasks[1], words=()).words == ()
