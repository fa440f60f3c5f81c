"""Scores of each task's model on its dev or test split.

If devices keep parameters of their own, a task's score is the mean over its devices' models, weighted by D_k.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from airpfed.core.errors import UserError
from airpfed.devices.clients import Clients
from airpfed.devices.evaluate import answer_log_likelihoods, classify, classify_words, complete
from airpfed.model.chat import TurnEnd
from airpfed.model.layout import Factors, Vectors, gather
from airpfed.model.tokens import Encoding
from airpfed.tasks.metrics import METRICS, MetricInput, balanced_accuracy
from airpfed.tasks.sample import Kind


@dataclass(frozen=True)
class Split:
    """Samples to be answered: prompts as token ids, and the right answers (class indices, or texts).

    references: prompts with the right answers as targets, where a metric reads their likelihood; else empty.
    """

    prompts: tuple[Encoding, ...]
    classes: tuple[int, ...]
    texts: tuple[str, ...]
    references: tuple[Encoding, ...] = ()


@dataclass(frozen=True)
class MetricChoice:
    """A row of `METRICS` with its options. label: its name in results."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def reads(self) -> MetricInput:
        """What the metric reads of a model."""
        return METRICS.find(self.name).reads


@dataclass(frozen=True)
class TaskView:
    """A task as evaluation reads it.

    labels: label words. choices: their tokens (causal LM) or class indices. names: the source's class names. All are in
    the order of the classes.
    metric, metric_options: name of a row of `METRICS`, and its options. further_metrics: reported beside it. words:
    all tokens of each label word where these are scored as a whole; else empty. normalised: whether a word's score is
    the mean over its tokens. turn_end: text and tokens that end an answer (chat).
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    choices: tuple[int, ...]
    max_new_tokens: int
    dev: Split
    test: Split
    metric: str = "auto"
    metric_options: Mapping[str, Any] = field(default_factory=dict)
    further_metrics: tuple[MetricChoice, ...] = ()
    words: tuple[tuple[int, ...], ...] = ()
    normalised: bool = False
    turn_end: TurnEnd = field(default_factory=TurnEnd)
    names: tuple[str, ...] = ()

    @property
    def metric_name(self) -> str:
        """Name of the metric, `auto` resolved."""
        if self.metric != "auto":
            return self.metric
        return "accuracy" if self.kind == "classify" else "exact_match"

    @property
    def metrics(self) -> tuple[MetricChoice, ...]:
        """The metric and the further metrics."""
        return (MetricChoice(self.metric_name, self.metric_options), *self.further_metrics)

    def reads(self, quantity: MetricInput) -> bool:
        """Whether one of the metrics reads a quantity."""
        return any(metric.reads == quantity for metric in self.metrics)

    def measure(self, metric: MetricChoice, predicted: Sequence[Any], correct: Sequence[Any]) -> float:
        """A metric of predictions: class indices (classify), texts, or log-likelihoods with numbers of tokens."""
        key = f'tasks.{self.name}.metric = "{metric.label or metric.name}"'
        try:
            value = METRICS.bind(metric.name, metric.options)(predicted, correct)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{key}: should give a number, not {value!r}")
        return float(value)


@dataclass(frozen=True)
class Score:
    """A metric. balanced: mean recall over classes (classify only). further: label -> value of further metrics."""

    value: float
    balanced: float | None
    further: Mapping[str, float] = field(default_factory=dict)


def score(clients: Clients, factors: Factors | None, task: TaskView, split: Literal["dev", "test"]) -> Score:
    """One model's score on a split. factors: None for the untouched base model."""
    samples = task.dev if split == "dev" else task.test
    answers = None
    if task.kind == "classify" or task.reads("answers"):
        answers = predict_answers(clients, factors, f"{split} {task.name}", samples.prompts, task)
    likelihoods = None
    if task.reads("likelihoods"):
        key = f"{split} {task.name} references"
        likelihoods = answer_log_likelihoods(clients, factors, key, samples.references)
    return score_answers(answers, samples, task, likelihoods)


def predict_answers(
    clients: Clients, factors: Factors | None, cache_key: str, prompts: Sequence[Encoding], task: TaskView
) -> list[Any]:
    """One model's answers to prompts: class indices (classify) or texts."""
    if task.kind != "classify":
        ids = [sample.ids for sample in prompts]
        texts = complete(clients, factors, ids, task.max_new_tokens, task.turn_end.tokens)
        return [task.turn_end.cut(text) for text in texts]
    if task.words:
        return classify_words(clients, factors, cache_key, prompts, task.words, task.normalised)
    return classify(clients, factors, cache_key, prompts, task.choices)


def score_answers(
    answers: Sequence[Any] | None,
    split: Split,
    task: TaskView,
    likelihoods: tuple[Sequence[float], Sequence[int]] | None = None,
) -> Score:
    """The score of a model's answers to a split of a task.

    answers: class indices (classify) or texts; None if no metric reads them. likelihoods: log-likelihoods of the right
    answers, and their numbers of tokens; None if no metric reads them.
    """
    correct = split.classes if task.kind == "classify" else split.texts
    values: list[float] = []
    for metric in task.metrics:
        pair = likelihoods if metric.reads == "likelihoods" else None if answers is None else (answers, correct)
        if pair is None:
            raise UserError(
                f'tasks.{task.name}.metric = "{metric.name}": reads the likelihood of right answers, which a device '
                "with a model of its own does not get to see; take a metric of answers"
            )
        values.append(task.measure(metric, *pair))
    further = {metric.label: value for metric, value in zip(task.further_metrics, values[1:], strict=True)}
    balanced = balanced_accuracy(answers or [], split.classes) if task.kind == "classify" else None
    return Score(values[0], balanced, further)


def score_task(clients: Clients, vectors: Vectors, number: int, task: TaskView, split: Literal["dev", "test"]) -> Score:
    """A task's score: the score of the one model of all its devices, or the D_k-weighted mean over its devices' models.

    number: index of the task whose model is scored. task: the task whose samples are used.
    """
    devices = (clients.task_of == number).nonzero().flatten().tolist()
    if vectors["device"].shape[1] == 0:
        return score(clients, model_of(clients, vectors, number, devices[0]), task, split)
    scores = [score(clients, model_of(clients, vectors, number, k), task, split) for k in devices]
    return mean_score(scores, [len(clients.shards[k]) for k in devices])


def mean_score(scores: Sequence[Score], weights: Sequence[int]) -> Score:
    """The mean of several models' scores; weights: number of training samples of each model's device."""

    def mean(values: Sequence[float]) -> float:
        return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)

    balanced = None if scores[0].balanced is None else mean([s.balanced or 0.0 for s in scores])
    further = {label: mean([s.further[label] for s in scores]) for label in scores[0].further}
    return Score(mean([s.value for s in scores]), balanced, further)


def score_other_tasks(
    clients: Clients, vectors: Vectors, number: int, tasks: Sequence[TaskView]
) -> dict[str, float | None]:
    """The metric of a task's model on the test splits of the other tasks.

    A classifier answers with its own classes. The value is None if it lacks a label word of the other task.
    """
    labels = tasks[number].labels
    metrics: dict[str, float | None] = {}
    for task in (task for task in tasks if task is not tasks[number]):
        if not clients.backbone.causal:
            if not set(task.labels) <= set(labels):
                metrics[task.name] = None
                continue
            task = replace(task, choices=tuple(labels.index(word) for word in task.labels))
        metrics[task.name] = score_task(clients, vectors, number, task, "test").value
    return metrics


def model_of(clients: Clients, vectors: Vectors, task: int, device: int) -> Factors:
    """The factors of one model (K = 1): the task's, with the device's own parameters."""
    factors = gather(vectors, clients.layout, torch.tensor([task]), torch.tensor([device]))
    return {key: tensor.to(clients.backbone.device) for key, tensor in factors.items()}
