"""Scores of the untouched and of the final models, and the summary of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean as mean
from typing import Annotated

from pydantic import Field

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, RoundRecord, Summary, TaskSummary
from airpfed.tasks.metrics import METRICS
from airpfed.training.evaluate import Score, score, score_other_tasks
from airpfed.training.setup import Log, TrainingSetup
from airpfed.training.state import State, vectors

Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class BaseScores(run_files.Record):
    """base.json: a key of everything that the scores depend on, and (metric, balanced) of each task.

    further: label -> value of the further metrics of each task; empty where no task has any.
    """

    key: str
    scores: list[tuple[Finite, Share | None]]
    further: list[dict[str, Finite]] = Field([])


@dataclass(frozen=True)
class FinalScores:
    """Scores after the last round, one per task; None if not requested.

    other_tasks: task -> metric on its test split.
    """

    test: list[Score] | list[None]
    dev: list[float | None]
    other_tasks: list[dict[str, float | None]]


def base_scores(experiment: TrainingSetup, path: Path, log: Log) -> list[Score]:
    """Test scores of the untouched model, computed once and cached in a file for all runs of the same base and splits.

    path: the file.
    """
    try:
        cached = run_files.read_json(path, BaseScores)
        if cached and cached.key == experiment.base_key and len(cached.scores) == len(experiment.tasks):
            further = cached.further or [{}] * len(cached.scores)
            return [Score(*pair, values) for pair, values in zip(cached.scores, further, strict=True)]
    except UserError as error:
        log(f"{error}; made again")
    log("scoring the untouched model on the test splits")
    scores = [score(experiment.clients, None, task, "test") for task in experiment.tasks]
    pairs = [[item.value, item.balanced] for item in scores]
    further = [dict(item.further) for item in scores]
    tree: dict[str, object] = {"key": experiment.base_key, "scores": pairs} | (
        {"further": further} if any(further) else {}
    )
    run_files.write_json(path, tree)
    return scores


def final_scores(experiment: TrainingSetup, state: State, records: Sequence[RoundRecord], log: Log) -> FinalScores:
    """Scores of the models after the last round on dev and test splits, and on other tasks' test splits.

    A dev score in the last record is not computed again. Raises UserError if no device answers with a test score; the
    run can then be resumed.
    """
    tasks = experiment.tasks
    recorded = records[-1].accuracy if records else {}
    dev = [recorded.get(task.name) for task in tasks]
    if experiment.score != "test":
        for n, task in enumerate(tasks):
            if task.name not in recorded and task.dev.prompts:
                dev_score = experiment.evaluate_task(experiment, state, n, "dev")
                dev[n] = dev_score.value if dev_score else None
    if experiment.score == "dev":
        return FinalScores([None] * len(tasks), dev, [{}] * len(tasks))
    log("scoring the tasks' models on the test splits")
    test: list[Score] = []
    for n, task in enumerate(tasks):
        test_score = experiment.evaluate_task(experiment, state, n, "test")
        if test_score is None:
            raise UserError(f"no device of task {task.name} answers, so it cannot be scored; go on with --resume")
        test.append(test_score)
    other_tasks: list[dict[str, float | None]] = [{}] * len(tasks)
    if experiment.cross_eval:
        values = vectors(state)
        other_tasks = [score_other_tasks(experiment.clients, values, n, tasks) for n in range(len(tasks))]
    return FinalScores(test, dev, other_tasks)


def summarise(
    experiment: TrainingSetup, records: list[RoundRecord], base: list[Score], final: FinalScores | None
) -> Summary:
    """The summary of the rounds so far. base: the untouched model's scores. final: None if the run was interrupted."""
    count = len(base)
    scores = final or FinalScores([None] * count, [None] * count, [{}] * count)
    test = [item.value for item in scores.test if item]
    rows = {
        task.name: TaskSummary(
            metric=task.metric_name,
            base=first.value,
            final=last.value if last else None,
            base_balanced=first.balanced,
            final_balanced=last.balanced if last else None,
            samples=len(task.test.prompts),
            dev=dev,
            others=other_tasks,
            larger_is_better=METRICS.find(task.metric_name).larger_is_better,
            base_metrics=dict(first.further),
            final_metrics=dict(last.further) if last else {},
        )
        for task, first, last, dev, other_tasks in zip(
            experiment.tasks, base, scores.test, scores.dev, scores.other_tasks, strict=True
        )
    }
    pis = [record.pi for record in records if record.pi is not None and isfinite(record.pi)]
    phases = ["gradients", "air", "evaluate", *(["theory"] if any(record.theory for record in records) else [])]
    return Summary(
        method=experiment.method,
        rounds=len(records),
        tasks=rows,
        average=mean(test) if test else None,
        average_base=mean(item.value for item in base),
        pi_mean=mean(pis) if pis else None,
        ledger=sum((record.ledger for record in records), Ledger()),
        seconds={phase: sum(record.seconds.get(phase, 0.0) for record in records) for phase in phases},
        exit="completed" if final else "interrupted",
    )
