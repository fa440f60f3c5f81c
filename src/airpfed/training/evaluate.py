"""Each task's model on its dev or test split; device scope counts by each device's share of the task's data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from airpfed.devices.evaluate import classify, complete
from airpfed.devices.gradients import Clients
from airpfed.model.layout import Factors, Vectors, gather
from airpfed.model.tokens import Encoded
from airpfed.tasks.metrics import accuracy, balanced_accuracy, exact_match
from airpfed.tasks.sample import Kind


@dataclass(frozen=True)
class Split:
    """Samples to be answered: prompts as token ids, and the right answers (class indices, or texts)."""

    prompts: tuple[Encoded, ...]
    classes: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class TaskView:
    """What evaluation needs of a task.

    labels: label words; choices: their tokens (causal LM) or class indices; both in the order of classes.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    choices: tuple[int, ...]
    max_new_tokens: int
    dev: Split
    test: Split

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return "accuracy" if self.kind == "classify" else "exact_match"


@dataclass(frozen=True)
class Score:
    """A metric in 0..1; balanced: mean recall over classes (classify only)."""

    value: float
    balanced: float | None


def score(clients: Clients, factors: Factors | None, task: TaskView, which: Literal["dev", "test"]) -> Score:
    """One model's score on a split; factors None is the untouched base model."""
    split = task.dev if which == "dev" else task.test
    if task.kind == "generate":
        return scored(complete(clients, factors, [s.ids for s in split.prompts], task.max_new_tokens), split, task.kind)
    return scored(classify(clients, factors, f"{which} {task.name}", split.prompts, task.choices), split, task.kind)


def scored(said: Sequence[Any], split: Split, kind: Kind) -> Score:
    """The score of a model's answers to a split: texts (generate) or class indices."""
    if kind == "generate":
        return Score(exact_match(said, split.texts), None)
    return Score(accuracy(said, split.classes), balanced_accuracy(said, split.classes))


def score_task(clients: Clients, vectors: Vectors, number: int, task: TaskView, which: Literal["dev", "test"]) -> Score:
    """The task's model: one for all its devices, or (device scope) the D_k-weighted mean over the devices' models."""
    devices = (clients.task_of == number).nonzero().flatten().tolist()
    if vectors["device"].shape[1] == 0:
        return score(clients, model_of(clients, vectors, number, devices[0]), task, which)
    scores = [score(clients, model_of(clients, vectors, number, k), task, which) for k in devices]
    return weighted(scores, [len(clients.shards[k]) for k in devices])


def weighted(scores: Sequence[Score], weights: Sequence[int]) -> Score:
    """The mean of several models' scores, weighted by their samples."""
    balanced = None if scores[0].balanced is None else _mean([s.balanced or 0.0 for s in scores], weights)
    return Score(_mean([s.value for s in scores], weights), balanced)


def score_elsewhere(
    clients: Clients, vectors: Vectors, number: int, tasks: Sequence[TaskView]
) -> dict[str, float | None]:
    """The metric of a task's model on the test splits of the others: what it has forgotten of them, or never knew.

    A head of its own answers with its own classes; None where it lacks one of the other task's label words.
    """
    own = tasks[number].labels
    found: dict[str, float | None] = {}
    for other in (task for task in tasks if task is not tasks[number]):
        if not clients.backbone.causal:
            if not set(other.labels) <= set(own):
                found[other.name] = None
                continue
            other = replace(other, choices=tuple(own.index(word) for word in other.labels))
        found[other.name] = score_task(clients, vectors, number, other, "test").value
    return found


def model_of(clients: Clients, vectors: Vectors, task: int, device: int) -> Factors:
    """The factors of one model (K = 1): a task's, with a device's own parts."""
    factors = gather(vectors, clients.layout, torch.tensor([task]), torch.tensor([device]))
    return {key: tensor.to(clients.backbone.device) for key, tensor in factors.items()}


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
