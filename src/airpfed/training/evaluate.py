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
from airpfed.devices.evaluate import classify, complete
from airpfed.model.layout import Factors, Vectors, gather
from airpfed.model.tokens import Encoding
from airpfed.tasks.metrics import METRICS, balanced_accuracy
from airpfed.tasks.sample import Kind


@dataclass(frozen=True)
class Split:
    """Samples to be answered: prompts as token ids, and the right answers (class indices, or texts)."""

    prompts: tuple[Encoding, ...]
    classes: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class TaskView:
    """A task as evaluation reads it.

    labels: label words. choices: their tokens (causal LM) or class indices. Both are in the order of the classes.
    metric, metric_options: name of a row of `METRICS`, and its options.
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

    @property
    def metric_name(self) -> str:
        """Name of the metric, `auto` resolved."""
        if self.metric != "auto":
            return self.metric
        return "accuracy" if self.kind == "classify" else "exact_match"

    def measure(self, predicted: Sequence[Any], correct: Sequence[Any]) -> float:
        """The metric of predictions: class indices (classify) or texts (generate)."""
        value = METRICS.bind(self.metric_name, self.metric_options)(predicted, correct)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f'tasks.{self.name}.metric = "{self.metric_name}": should give a number, not {value!r}')
        return float(value)


@dataclass(frozen=True)
class Score:
    """A metric in 0..1. balanced: mean recall over classes (classify only)."""

    value: float
    balanced: float | None


def score(clients: Clients, factors: Factors | None, task: TaskView, split: Literal["dev", "test"]) -> Score:
    """One model's score on a split. factors: None for the untouched base model."""
    samples = task.dev if split == "dev" else task.test
    if task.kind == "generate":
        texts = complete(clients, factors, [sample.ids for sample in samples.prompts], task.max_new_tokens)
        return score_answers(texts, samples, task)
    classes = classify(clients, factors, f"{split} {task.name}", samples.prompts, task.choices)
    return score_answers(classes, samples, task)


def score_answers(answers: Sequence[Any], split: Split, task: TaskView) -> Score:
    """The score of a model's answers to a split of a task. answers: texts (generate) or class indices (classify)."""
    if task.kind == "generate":
        return Score(task.measure(answers, split.texts), None)
    return Score(task.measure(answers, split.classes), balanced_accuracy(answers, split.classes))


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
    return Score(mean([s.value for s in scores]), balanced)


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
