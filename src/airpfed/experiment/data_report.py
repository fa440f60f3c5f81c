"""What a run's data is, told before round 1: counts, classes, what was dropped, what the model does not get to read."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from airpfed.config.schema import Settings
from airpfed.core.run_files import DataReport
from airpfed.model.tokens import Encoded, prompt_ids
from airpfed.tasks.sample import Sample, Task
from airpfed.training.evaluate import Split, TaskView
from airpfed.training.experiment import Experiment

SHOWN = 12
"""Classes that a line shows."""


def data_report(settings: Settings, tasks: Sequence[Task], experiment: Experiment) -> dict[str, DataReport]:
    """Task -> what its data is. Of a federation's server: what it holds, which is dev and test alone."""
    clients, limit = experiment.clients, settings.model.max_tokens
    owners = clients.task_of.tolist()
    found: dict[str, DataReport] = {}
    for number, (task, view) in enumerate(zip(tasks, experiment.tasks, strict=True)):
        train = [
            sample for owner, shard in zip(owners, clients.shards, strict=True) if owner == number for sample in shard
        ]
        found[task.name] = of_task(task, train, view, clients.backbone.tokenizer, limit)
        asked = settings.tasks[number]
        if train and asked.sizes == "equal" and found[task.name].samples_least < asked.samples_per_device:
            line = f"samples_per_device = {asked.samples_per_device}, and there are fewer"
            found[task.name] = found[task.name].model_copy(update={"notes": [*found[task.name].notes, line]})
    return found


def of_task(task: Task, train: Sequence[Encoded], view: TaskView, tokenizer: Any, limit: int) -> DataReport:
    """What a task's data is. train: of all its devices, device by device, as the loss reads it; limit: tokens."""
    shards = [sample for shard in task.train for sample in shard]
    pairs = [*zip(shards, train, strict=True), *_read(task.dev, view.dev), *_read(task.test, view.test)]
    prompts = [length for sample, ids in pairs if (length := _prompt_length(sample, ids, tokenizer, limit)) > limit]
    answers = [
        one for sample, ids in zip(shards, train, strict=True) if (one := _answer_length(sample, ids, tokenizer))
    ]
    held = {encoded.ids[: len(encoded.ids) - len(encoded.targets) + 1] for encoded in train}
    sizes = [len(shard) for shard in task.train]
    parts = [Counter(sample.label for sample in part) for part in (shards, task.dev, task.test)]
    report = DataReport(
        rows=task.counts.rows,
        skipped=task.counts.skipped,
        duplicates=task.counts.duplicates,
        contradictions=task.counts.contradictions,
        barred=task.counts.barred,
        devices=len(sizes),
        samples_least=min(sizes, default=0),
        samples_most=max(sizes, default=0),
        dev=len(task.dev),
        test=len(task.test),
        classes={name: [part[index] for part in parts] for index, name in enumerate(task.names)},
        prompts_cut=len(prompts) / len(pairs) if pairs else 0.0,
        prompts_cut_tokens=median(prompts) if prompts else None,
        answers_cut=len(answers) / len(train) if train else 0.0,
        answers_cut_tokens=median(answers) if answers else None,
        alike_when_cut=sum(encoded.ids in held for encoded in view.test.prompts),
        notes=list(task.counts.notes),
    )
    return report.model_copy(update={"notes": [*report.notes, *_warnings(report)]})


def _read(samples: Sequence[Sample], split: Split) -> list[tuple[Sample, Encoded]]:
    return list(zip(samples, split.prompts, strict=True))


def _prompt_length(sample: Sample, encoded: Encoded, tokenizer: Any, limit: int) -> int:
    """Tokens of a prompt as it was before it was cut, and of the answer behind it but for the last."""
    if len(encoded.ids) < limit:
        return len(encoded.ids)
    return len(prompt_ids(tokenizer, sample.prompt, sys.maxsize)) + len(encoded.targets) - 1


def _answer_length(sample: Sample, encoded: Encoded, tokenizer: Any) -> int:
    """Tokens of an answer that was cut, with the end token that it lost; 0 of any other."""
    if sample.label >= 0 or tokenizer.eos_token_id is None or encoded.targets[-1] == tokenizer.eos_token_id:
        return 0
    return len(tokenizer(sample.answer, add_special_tokens=False).input_ids) + 1


def _warnings(report: DataReport) -> list[str]:
    """What makes the outcome of a classification doubtful, a line each."""
    lines: list[str] = []
    trained = report.samples_most > 0
    missing = [name for name, (train, _, _) in report.classes.items() if trained and train == 0]
    if missing:
        lines.append(f"no device has a sample of class {_listed(missing)}")
    tested = [name for name, (_, _, test) in report.classes.items() if test]
    if len(tested) == 1 and report.test:
        lines.append(f"the test split holds the one class {tested[0]}: its accuracy says nothing of the others")
    elif report.classes and len(tested) < len(report.classes):
        lines.append(f"no test sample is of class {_listed([name for name in report.classes if name not in tested])}")
    if report.alike_when_cut:
        lines.append(
            f"{report.alike_when_cut} of {report.test} test prompts are, once cut to tokens, those of a training sample"
        )
    return lines


def data_lines(reports: Mapping[str, DataReport]) -> list[str]:
    """The block before round 1: a line a task, and one more for everything that should be known."""
    return [line for name, report in reports.items() for line in _lines(name, report)]


def _lines(name: str, report: DataReport) -> list[str]:
    least, most = report.samples_least, report.samples_most
    each = f"{least}" if least == most else f"{least} to {most}"
    devices = (
        f"{report.devices} devices x {each} samples" if most else f"{report.devices} devices with their own samples"
    )
    parts = [f"task {name}: {devices}, dev {report.dev}, test {report.test}"]
    if report.classes:
        shown = [
            f"{one} {train}/{test}" if most else f"{one} {test}" for one, (train, _, test) in report.classes.items()
        ]
        rest = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        parts.append(f"classes ({'train/test' if most else 'test'}) {', '.join(shown[:SHOWN])}{rest}")
    dropped = [
        f"{count:,} {what}"
        for count, what in (
            (report.skipped, "without text or label"),
            (report.duplicates, f"duplicates{_against(report.contradictions)}"),
            (report.barred, "that another task tests on"),
        )
        if count
    ]
    if dropped:
        parts.append(f"left out of {report.rows:,} rows: {', '.join(dropped)}")
    lines = ["; ".join(parts)]
    if report.prompts_cut:
        length = f"median {report.prompts_cut_tokens:g} tokens"
        lines.append(f"  model.max_tokens cuts {report.prompts_cut:.1%} of the prompts ({length})")
    if report.answers_cut:
        length = f"median {report.answers_cut_tokens:g} tokens"
        lines.append(
            f"  model.max_tokens cuts {report.answers_cut:.1%} of the answers ({length}): no end is learnt of them"
        )
    return [*lines, *(f"  {note}" for note in report.notes)]


def _against(contradictions: int) -> str:
    return f" ({contradictions:,} of another class or answer than the first, which stays)" if contradictions else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
